#!/usr/bin/env bash
# One machine's part of a run over several. Start it on every machine at about the same time, with that machine's RANK:
#
#   NODES=2 GPUS=8 RANK=0 HEAD=10.0.0.1 recipes/accelerate/multi_node.sh recipes/accelerate/zero3.yaml \
#       -m trl_dpo_ext train --config ... --resume_from_checkpoint auto
#
# NODES   machines                  RANK   which one this is, from 0
# GPUS    of this machine           HEAD   address of machine 0, as the others reach it; PORT there (29500)
#
# What stands between the configuration and the script goes to `accelerate launch`, as do keys it takes from flags alone:
# rdzv_backend (in the YAML it is ignored; without it torchrun meets in a way that cannot restart). --same_network must be
# left out: with it, accelerate forgets where to meet.
# The output folder has to be on a disk that all machines share, and --ref_store should be: a machine with a folder of its own
# computes all reference log-probs by itself. If a machine dies, all end; started again, the run goes on from its newest
# complete checkpoint, by --resume_from_checkpoint auto.
set -euo pipefail
: "${NODES:?number of machines}" "${GPUS:?GPUs of this machine}" "${RANK:?rank of this machine}" "${HEAD:?address of machine 0}"
configuration=${1:?an accelerate configuration, then what to launch}
exec accelerate launch --config_file "$configuration" \
    --num_machines "$NODES" --num_processes "$((NODES * GPUS))" --machine_rank "$RANK" \
    --main_process_ip "$HEAD" --main_process_port "${PORT:-29500}" --rdzv_backend c10d \
    "${@:2}"
