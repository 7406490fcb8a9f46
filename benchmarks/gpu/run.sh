#!/usr/bin/env bash
# On a machine with an NVIDIA GPU and mlpdeploy[export,gpu,tensorrt,demo]. Writes into benchmarks/results/gpu/. For every
# model: export it, compare ONNX Runtime's CUDA provider with float64 PyTorch, build a TensorRT engine and check the runtime
# with it (parity, rows, CUDA graphs, arrays on the GPU, times). Then the axial shift's kernel, which needs a torch with CUDA
# and nvcc. A check that fails does not stop the others; the exit status tells. Never run yet.
set -euo pipefail
cd "$(dirname "$0")/../.."
out=benchmarks/results/gpu
mkdir -p "$out"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
nvidia-smi >"$out/nvidia-smi.txt"
failed=0
python -m mlpdeploy doctor --json >"$out/doctor.json" || failed=1
python -m mlpdeploy plugin build || failed=1 # without it engines have the shift in native layers
for model in asmlp_t asmlp_s asmlp_b vip_s14 vip_s7 vip_m7 vip_l7; do
  python -m mlpdeploy export --model "$model" -o "$scratch/$model" --no-verify
  python -m mlpdeploy verify "$scratch/$model" --device cuda --no-record --json >"$out/verify_$model.json" || failed=1
  python benchmarks/gpu/runtime.py "$scratch/$model" -o "$out/tensorrt_$model.json" || failed=1
  rm -rf "${scratch:?}/$model"
done
python -m mlpdeploy export --model asmlp_t -o "$scratch/asmlp_t" --no-verify
quantized() { # PRECISION OPTIONS...: INT8 is never shown without FP16 beside it
  python -m mlpdeploy quantize "$scratch/asmlp_t" -o "$scratch/$1" --precision "$@" --target tensorrt --no-verify &&
    python benchmarks/gpu/runtime.py "$scratch/$1" -o "$out/tensorrt_asmlp_t_$1.json"
}
quantized fp16 || failed=1
if [ -n "${CALIBRATION_DATA:-}" ]; then quantized int8 --calibration-data "$CALIBRATION_DATA" || failed=1; fi
if python -c 'import pycuda.driver' 2>/dev/null; then # the other way to CUDA
  MLPDEPLOY_CUDA=pycuda python benchmarks/gpu/runtime.py "$scratch/asmlp_t" -o "$out/tensorrt_asmlp_t_pycuda.json" || failed=1
fi
python benchmarks/gpu/axial_shift.py || failed=1
exit "$failed"
