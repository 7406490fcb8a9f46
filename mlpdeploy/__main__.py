"""`python -m mlpdeploy`."""

from mlpdeploy.cli import main

main(prog_name="mlpdeploy")
