#!/usr/bin/env bash
# Set up Python, train HDGE + JEM on scikit-learn's bundled digits, evaluate it, and print where the results are.
# Further flags go to train_wrn.py, as in `bash scripts/quickstart.sh --n_epochs 2`; --log_dir and --id are fixed.
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/environment.sh" base
cd "$hdge_root"

# For so small a network one thread takes at most 1.5 times as long as two; beside other programs two took hours.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

log_dir=./save
id=quickstart-$(date +%Y%m%d-%H%M%S)

"$PYTHON" train_wrn.py @digits --plot_cond --plot_uncond --print_every 20 --seed 1 "$@" --log_dir "$log_dir" --id "$id"
[ -f "$log_dir/$id/progress.csv" ] || exit 0  # --help or --dry_run was among the flags

echo
echo "The trained model on images that it has not seen:"
threads=()  # --threads among the flags also applies to the questions
for ((i = 1; i <= $#; i++)); do
    case ${!i} in
        --threads) threads=("${@:i:2}") ;;
        --threads=*) threads=("${!i}") ;;
    esac
done
ask=("$PYTHON" eval_wrn_ebm.py ${threads[@]+"${threads[@]}"} --load_path "$log_dir/$id/last_ckpt.pt" --eval)
for question in \
    "test_clf" \
    "eval_ece" \
    "OOD --score_fn px py --ood_dataset all --max_images 1000" \
    "logp_hist --ood_dataset all --max_images 1000" \
    "attack --max_images 100 --eps 0 2/255 4/255 8/255 16/255 --n_steps_pgd_attack 10" \
    "cond_samples --fresh_samples --buffer_size 500 --sgld_batch_size 500 --n_sample_steps 1 --n_steps 40"; do
    # shellcheck disable=SC2086  # a question is several words
    "${ask[@]}" $question
done
"$PYTHON" scripts/report.py "$log_dir/$id"

"$PYTHON" - "$log_dir/$id" <<'EOF'
import csv
import sys
from pathlib import Path

run = Path(sys.argv[1])
with open(run / "progress.csv", newline="") as file:
    measured = [row for row in csv.DictReader(file) if row["test_acc"]]
print()
for row in measured[-1:]:  # --max_minutes and --eval_every may leave none
    print(f"Test accuracy after {int(row['epoch']) + 1} epochs: {100 * float(row['test_acc']):.2f} %")
places = [("progress.csv", "one row an epoch"), ("samples", "pictures"), ("eval", "evaluations"), ("report.html", "all of it on one page")]
for name, what in places:
    if (run / name).exists():
        print(f"  {str(run / name):<48} {what}")
EOF
