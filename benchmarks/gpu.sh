#!/usr/bin/env bash
# What this project does on one GPU: one command, ends within nine minutes, prints tables, writes JSON as it goes.
#
#   benchmarks/gpu.sh                                   all parts
#   benchmarks/gpu.sh resnet50 project                  some: machine correct resnet50 compiled kernels cifar project
#   benchmarks/gpu.sh --photographs DIR                 own JPEGs, for resnet50 and compiled; unset: they are drawn
#   benchmarks/gpu.sh --cifar DIR --minutes 60 cifar    train on CIFAR-10 (class folders) until k-NN 90 %, or for so long
#   benchmarks/gpu.sh --out DIR                         where the files go; unset: runs/gpu
#   benchmarks/gpu.sh --tiny                            small sizes, as without a GPU: whether it runs, not how fast
#
# Part cifar without --cifar says how fast its recipe trains, on noise of CIFAR-10's size, not compiled.
# Every part has its own time limit, so the whole surely ends; a part that is cut short leaves what it has measured.
# OUT holds PART.json for each part, and parts.jsonl: how each ended. PYTHON names the interpreter.
# Exit status 1 where a part failed or was cut short.
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-$(command -v python || command -v python3)} || { echo "gpu.sh: error: no python here; set PYTHON" >&2; exit 2; }
out=$here/../runs/gpu photographs='' cifar='' minutes=60 tiny=() parts=()
while [ $# -gt 0 ]; do
    case $1 in
        --out | --photographs | --cifar | --minutes)
            [ $# -ge 2 ] || { echo "gpu.sh: error: $1 wants a value" >&2; exit 2; }
            printf -v "${1#--}" %s "$2"
            shift 2 ;;
        --tiny) tiny=(--tiny); shift ;;
        machine | correct | resnet50 | compiled | kernels | cifar | project) parts+=("$1"); shift ;;
        *)
            echo "gpu.sh: error: $1 is none of machine correct resnet50 compiled kernels cifar project" \
                "--out --photographs --cifar --minutes --tiny" >&2
            exit 2 ;;
    esac
done
[ ${#parts[@]} -gt 0 ] || parts=(machine correct resnet50 compiled kernels cifar project)

# Seconds of each part; with 5 more to be killed, 535 together. Compiling from nothing takes a minute or two.
declare -A seconds=([machine]=75 [correct]=60 [resnet50]=130 [compiled]=150 [kernels]=35 [cifar]=40 [project]=10)
recipe=$here/../configs/cifar10_speedrun.yaml
small=(--encoder ssl.encoders.SmallResNet --encoder_kwargs '{width: 8, stages: 2}' --projector 64-64 --batch_size 16
    --steps 2 --turns 1)
mkdir -p "$out" || exit 1
states=$out/parts.jsonl failed=0
: > "$states"
for part in "${parts[@]}"; do
    script=gpu_$part.py limit=${seconds[$part]} grace=5 arguments=(--json "$out/$part.json" "${tiny[@]}")
    [ ${#tiny[@]} = 0 ] || limit=900  # however slow the machine is
    case $part in
        resnet50 | compiled) [ -z "$photographs" ] || arguments+=(--data_dir "$photographs") ;;
        project) arguments=(--json "$out/$part.json" --measured "$out/resnet50.json") ;;
        cifar)
            if [ -n "$cifar" ]; then
                script=speedrun.py arguments=("$recipe" --target knn=0.9 --minutes "$minutes" --eval_every 10 --test)
                arguments+=(--data_dir "$cifar" --output_dir "$out/cifar" --json "$out/cifar.json")
                limit=$(awk "BEGIN { print int(120 * $minutes) + 600 }") grace=150  # judging and the test come on top
            else
                script=throughput.py arguments=(--json "$out/cifar.json" --config "$recipe" --dataset fake --compile false)
                [ ${#tiny[@]} = 0 ] || arguments+=("${small[@]}")
            fi ;;
    esac
    # What was measured before is not to be taken for today's; a training that is not begun again keeps its own.
    if [ "$part" != cifar ] || [ -z "$cifar" ]; then rm -f "$out/$part.json"; fi
    printf '\n== %s ==\n' "$part"
    began=$SECONDS
    timeout -k "$grace" "$limit" "$python" "$here/$script" "${arguments[@]}"
    status=$?
    case $status in
        0) state=whole ;;
        124 | 137) state="cut short after $limit s" failed=1 ;;
        *) state="failed" failed=1 ;;
    esac
    printf '{"part": "%s", "state": "%s", "exit_status": %d, "seconds": %d}\n' \
        "$part" "$state" "$status" $((SECONDS - began)) >> "$states"
    echo "$part: $state, $((SECONDS - began)) s"
done
printf '\nHow the parts ended; their numbers are beside this file, %s:\n' "$states"
cat "$states"
exit $failed
