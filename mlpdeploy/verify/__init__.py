"""Proof that an artifact computes what PyTorch computes."""

from mlpdeploy.verify.verify import VerifyReport, verify_artifact, verify_or_raise

__all__ = ["VerifyReport", "verify_artifact", "verify_or_raise"]
