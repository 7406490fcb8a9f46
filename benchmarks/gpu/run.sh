#!/usr/bin/env bash
# On a machine with an NVIDIA GPU and mlpdeploy[export,gpu,demo]: export every model, and compare ONNX Runtime's CUDA
# provider with float64 PyTorch. Writes one report per model into benchmarks/results/gpu/. Then the axial shift's kernel,
# which needs a torch with CUDA and nvcc. Never run yet.
set -euo pipefail
cd "$(dirname "$0")/../.."
out=benchmarks/results/gpu
mkdir -p "$out"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
nvidia-smi >"$out/nvidia-smi.txt"
python -m mlpdeploy doctor --json >"$out/doctor.json"
failed=0
for model in asmlp_t asmlp_s asmlp_b vip_s14 vip_s7 vip_m7 vip_l7; do
  python -m mlpdeploy export --model "$model" -o "$scratch/$model" --no-verify
  python -m mlpdeploy verify "$scratch/$model" --device cuda --no-record --json >"$out/verify_$model.json" || failed=1
  rm -rf "${scratch:?}/$model"
done
python benchmarks/gpu/axial_shift.py || failed=1
exit "$failed"
