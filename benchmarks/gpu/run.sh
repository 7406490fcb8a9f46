#!/usr/bin/env bash
# On a machine with an NVIDIA GPU: everything that only a GPU can tell, into benchmarks/results/gpu/. All of it needs
# mlpdeploy[export,gpu,tensorrt,demo]; for the kernel and the torch operator, torch with CUDA and nvcc are enough. Each
# step writes a log and what it measured; one that fails or is skipped does not stop the others. It ends with a table of
# all steps, which is summary.tsv too. Exit 1 when a step failed, or when none could run.
#
#   benchmarks/gpu/run.sh              everything
#   benchmarks/gpu/run.sh --dry-run    says what would run here, and why the rest would not
#   CALIBRATION_DATA=DIR benchmarks/gpu/run.sh    with INT8, which is never measured without FP16 beside it
#
# Never run on a GPU yet.
set -euo pipefail
cd "$(dirname "$0")/../.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" # the checkout itself, installed or not
dry=${1:-}
out=${OUT:-benchmarks/results/gpu}
python=${PYTHON:-python}
models=${MODELS:-asmlp_t asmlp_s asmlp_b vip_s14 vip_s7 vip_m7 vip_l7 cyclemlp_b2}
mkdir -p "$out"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
summary="$out/summary.tsv"
: >"$summary"

note() { # STEP STATE REASON
  printf '%s\t%s\t%s\n' "$1" "$2" "${3:-}" >>"$summary"
  echo "[$2] $1${3:+: $3}"
}

# What this machine has; empty means that it is there, otherwise the reason why not.
no_gpu=""
nvidia-smi -L >/dev/null 2>&1 || no_gpu="no NVIDIA GPU (nvidia-smi finds none)"
has() { "$python" -c "$1" >/dev/null 2>&1; }
no_program="" no_models="" no_torch="" no_nvcc="" no_headers="" no_ort="" no_tensorrt="" no_user="" no_embedded=""
no_pycuda=""
has 'import click, rich' || no_program="no click or no rich, which mlpdeploy's commands need"
has 'import onnxruntime' || no_models="no onnxruntime, without which doctor fails"
has 'import torch; assert torch.cuda.is_available()' || no_torch="no torch with CUDA"
has 'from mlpdeploy.plugins.toolchain import find_nvcc; assert find_nvcc()' || no_nvcc="no nvcc"
has 'from mlpdeploy.plugins.toolchain import find_toolchain; find_toolchain()' ||
  no_headers="no CMake, no nvcc or no headers of TensorRT"
has 'import onnxruntime as o; assert "CUDAExecutionProvider" in o.get_available_providers()' || no_ort="no onnxruntime-gpu"
has 'import tensorrt' || no_tensorrt="no TensorRT"
[ -n "$no_ort" ] && [ -n "$no_tensorrt" ] && no_user="neither onnxruntime-gpu nor TensorRT"
has 'from mlpdeploy.runtime.tensorrt_api import load_tensorrt; load_tensorrt("tensorrt").check_embedded()' ||
  no_embedded="no TensorRT whose engines carry plugins"
has 'import pycuda.driver' || no_pycuda="no pycuda"
no_cpp=$("$python" benchmarks/gpu/cpp.py --missing 2>/dev/null) || no_cpp="cpp.py does not run here"

step() { # NAME "REASON..." COMMAND...: skipped when a reason is not empty
  local name=$1 reason=$2
  shift 2
  if [ -n "$reason" ]; then
    note "$name" skipped "$reason"
  elif [ "$dry" = --dry-run ]; then
    note "$name" "would run" "$*"
  elif "$@" >"$out/$name.log" 2>&1; then
    note "$name" passed
  else
    note "$name" FAILED "$(tail -n 1 "$out/$name.log" | cut -c 1-160)"
  fi
}
first() { # the first reason that is not empty
  for reason in "$@"; do [ -n "$reason" ] && echo "$reason" && return; done
  return 0
}
no_export=$(first "$no_gpu" "$no_program") # the reason of all that needs an artifact
# The labels' names do not matter, and a package with ImageNet's may be missing.
export_model() { # MODEL [FOLDER]
  "$python" -m mlpdeploy export --model "$1" -o "$scratch/${2:-$1}" --labels "$scratch/labels.txt" --no-verify
}
seq -f 'class_%.0f' 0 999 >"$scratch/labels.txt"
to_file() { # FILE COMMAND...: JSON from stdout
  local file=$1
  shift
  "$@" >"$file"
}
quantized() { # PRECISION OPTIONS...
  local precision=$1
  shift
  # Quantized files keep the form of the shift, and without headers there is no plugin.
  if [ -n "$no_headers" ]; then
    "$python" -m mlpdeploy lower "$scratch/asmlp_t" --target tensorrt --shift conv --force --no-verify
  fi
  "$python" -m mlpdeploy quantize "$scratch/asmlp_t" -o "$scratch/$precision" --precision "$precision" "$@" \
    --target tensorrt --no-verify &&
    "$python" benchmarks/gpu/runtime.py "$scratch/$precision" -o "$out/tensorrt_asmlp_t_$precision.json"
}

step machine "$no_gpu" to_file "$out/nvidia-smi.txt" nvidia-smi
step doctor "$(first "$no_program" "$no_models")" to_file "$out/doctor.json" "$python" -m mlpdeploy doctor --json
# Without it engines have the shift in native layers.
step plugin_build "$(first "$no_program" "$no_headers")" "$python" -m mlpdeploy plugin build
step kernel "$(first "$no_gpu" "$no_torch" "$no_nvcc")" "$python" benchmarks/gpu/axial_shift.py \
  -o "$out/axial_shift.json"
step torch_operator "$(first "$no_gpu" "$no_torch" "$no_nvcc")" "$python" benchmarks/gpu/torch_operator.py \
  -o "$out/torch_operator.json"
for model in $models; do
  step "export_$model" "$(first "$no_user" "$no_export")" export_model "$model"
  step "onnxruntime_cuda_$model" "$(first "$no_export" "$no_ort")" "$python" benchmarks/gpu/onnxruntime_gpu.py \
    "$scratch/$model" -o "$out/onnxruntime_cuda_$model.json"
  step "tensorrt_$model" "$(first "$no_export" "$no_tensorrt")" "$python" benchmarks/gpu/runtime.py "$scratch/$model" \
    -o "$out/tensorrt_$model.json"
  if [ "$model" != asmlp_t ]; then rm -rf "${scratch:?}/$model"; fi
done
step cpp_tensorrt "$(first "$no_export" "$no_tensorrt" "$no_cpp")" "$python" benchmarks/gpu/cpp.py \
  "$scratch/asmlp_t" -o "$out/cpp_tensorrt_asmlp_t.json"
step onnxruntime_tensorrt "$(first "$no_export" "$no_ort" "$no_tensorrt")" "$python" benchmarks/gpu/onnxruntime_gpu.py \
  "$scratch/asmlp_t" --backend onnxruntime-tensorrt -o "$out/onnxruntime_tensorrt_asmlp_t.json"
embedded() { # in an artifact of its own: of several engines a session takes the one that was measured
  export_model asmlp_t embedded &&
    "$python" benchmarks/gpu/runtime.py "$scratch/embedded" --plugin embedded -o "$out/tensorrt_asmlp_t_embedded.json"
}
step embedded_plugin "$(first "$no_export" "$no_tensorrt" "$no_embedded" "$no_nvcc")" embedded
step fp16 "$(first "$no_export" "$no_tensorrt")" quantized fp16
no_data=""
[ -n "${CALIBRATION_DATA:-}" ] || no_data="no CALIBRATION_DATA"
step int8 "$(first "$no_export" "$no_tensorrt" "$no_data")" quantized int8 --calibration-data "${CALIBRATION_DATA:-}"
step pycuda "$(first "$no_export" "$no_tensorrt" "$no_pycuda")" env MLPDEPLOY_CUDA=pycuda "$python" \
  benchmarks/gpu/runtime.py "$scratch/asmlp_t" -o "$out/tensorrt_asmlp_t_pycuda.json"

echo
column -t -s "$(printf '\t')" "$summary" 2>/dev/null || cat "$summary"
count() { cut -f 2 "$summary" | grep -c "^$1$" || true; }
echo "$(count passed) passed, $(count FAILED) failed, $(count skipped) skipped; logs and results in $out"
[ "$dry" = --dry-run ] && exit 0
[ -z "$no_gpu" ] && [ "$(count FAILED)" = 0 ]
