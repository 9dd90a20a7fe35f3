#!/usr/bin/env bash
# What this project does on one GPU: one command, ends within nine minutes, prints tables and writes JSON.
#
#   benchmarks/gpu.sh                                   all parts
#   benchmarks/gpu.sh resnet50 project                  some: correct kernels resnet50 cifar project
#   benchmarks/gpu.sh --photographs DIR                 JPEGs of one's own for resnet50; unset: they are drawn
#   benchmarks/gpu.sh --cifar DIR --minutes 60 cifar    train on CIFAR-10 (class folders), for so long; once more to go on
#   benchmarks/gpu.sh --out DIR                         where the files go; unset: runs/gpu
#
# Every part has its own time limit, so the whole surely ends; a part that is cut short leaves what it has measured.
# PYTHON names the interpreter. Without a GPU everything is tiny: that says whether it runs, not how fast.
# Exit status 1 where a part failed or was cut short.
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python}
out=$here/../runs/gpu photographs='' cifar='' minutes=60 parts=()
while [ $# -gt 0 ]; do
    case $1 in
        --out | --photographs | --cifar | --minutes)
            [ $# -ge 2 ] || { echo "gpu.sh: error: $1 wants a value" >&2; exit 2; }
            printf -v "${1#--}" %s "$2"
            shift 2 ;;
        correct | kernels | resnet50 | cifar | project) parts+=("$1"); shift ;;
        *)
            echo "gpu.sh: error: $1 is none of correct kernels resnet50 cifar project --out --photographs --cifar --minutes" >&2
            exit 2 ;;
    esac
done
[ ${#parts[@]} -gt 0 ] || parts=(correct kernels resnet50 cifar project)

declare -A seconds=([correct]=105 [kernels]=60 [resnet50]=280 [cifar]=50 [project]=15)  # and 5 each to be killed: 535
mkdir -p "$out" || exit 1
failed=0
for part in "${parts[@]}"; do
    limit=${seconds[$part]} grace=5 arguments=(--json "$out/$part.json")
    case $part in
        resnet50) [ -z "$photographs" ] || arguments+=(--data_dir "$photographs") ;;
        project) arguments+=(--measured "$out/resnet50.json") ;;
        cifar)
            if [ -n "$cifar" ]; then
                arguments+=(--data_dir "$cifar" --runs "$out/cifar" --minutes "$minutes")
                limit=$(awk "BEGIN { print int(60 * $minutes) + 300 }") grace=60
            fi ;;
    esac
    # What was measured before is not to be taken for today's; training alone goes on from it.
    if [ "$part" != cifar ] || [ -z "$cifar" ]; then rm -f "$out/$part.json"; fi
    printf '\n== %s ==\n' "$part"
    began=$SECONDS
    timeout -k "$grace" "$limit" "$python" "$here/gpu_$part.py" "${arguments[@]}"
    status=$?
    case $status in
        0) state=whole ;;
        124 | 137) state="cut short after $limit s" failed=1 ;;
        *) state="failed" failed=1 ;;
    esac
    printf '{"part": "%s", "state": "%s", "exit_status": %d, "seconds": %d}\n' \
        "$part" "$state" "$status" $((SECONDS - began)) > "$out/$part.state.json"
    echo "$part: $state, $((SECONDS - began)) s"
done
"$python" "$here/gpu_report.py" "$out" "${parts[@]}"
exit $failed
