#!/usr/bin/env bash
# Launch one machine's part of a multi-machine run. Start it on every machine at about the same time, with its own RANK:
#
#   NODES=2 GPUS=8 RANK=0 HEAD=10.0.0.1 recipes/accelerate/multi_node.sh recipes/accelerate/zero3.yaml \
#       -m trl_dpo_ext train --config ... --resume_from_checkpoint auto
#
# NODES   number of machines        RANK   index of this machine, from 0
# GPUS    GPUs of this machine      HEAD   address of machine 0 for the others; PORT on it (default 29500)
#
# Arguments between the configuration and the script are passed to `accelerate launch`. --rdzv_backend is a flag because
# accelerate ignores it in the YAML; without it, torchrun uses a rendezvous that cannot restart. Do not pass --same_network:
# accelerate would drop the rendezvous address.
# The output folder must be on a disk that all machines share, and so should --ref_store: a machine with a separate folder
# computes all reference log-probs itself. If one machine dies, all of them stop; when restarted with
# --resume_from_checkpoint auto, the run resumes from its newest complete checkpoint.
set -euo pipefail
: "${NODES:?number of machines}" "${GPUS:?GPUs of this machine}" "${RANK:?rank of this machine}" "${HEAD:?address of machine 0}"
configuration=${1:?an accelerate configuration, then what to launch}
exec accelerate launch --config_file "$configuration" \
    --num_machines "$NODES" --num_processes "$((NODES * GPUS))" --machine_rank "$RANK" \
    --main_process_ip "$HEAD" --main_process_port "${PORT:-29500}" --rdzv_backend c10d \
    "${@:2}"
