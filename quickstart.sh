#!/bin/bash
# ./quickstart.sh [--keep] [SOURCE]
#
# Installs what is missing (apt, a Python environment in .venv, the build) and shows what cowfs does: two instant copies
# of a model, read at the speed of XFS, of which one is changed and the other and the source are not.
#
# SOURCE is a model directory of yours on a volume with reflink (XFS, btrfs, bcachefs). Without it a small real model is
# taken, on an XFS volume in a file of 4 GiB, /var/lib/cowfs/quickstart.img, which takes as much space as is used of it.
# At the end everything is unmounted and the copies are discarded; with --keep they stay, for you to look at.
set -euo pipefail

usage() { sed -n '2,9s/^#\( \|$\)//p' "$(readlink -f "$0")"; }

keep=() source=
for argument; do
    case $argument in
    --help | -h) usage; exit 0 ;;
    --keep) keep=(--keep) ;;
    -*) echo "quickstart.sh: unknown option $argument; see --help" >&2; exit 1 ;;
    *)
        [[ -z $source ]] || { echo "quickstart.sh: more than one SOURCE: $source and $argument" >&2; exit 1; }
        [[ -d $argument ]] || { echo "quickstart.sh: $argument is not a directory" >&2; exit 1; }
        source=$(readlink -f "$argument")
        ;;
    esac
done

cd "$(dirname "$(readlink -f "$0")")"
# shellcheck source=.ci/setup.sh
source .ci/setup.sh
if [[ -z $source ]]; then
    need_machine loop
else
    need_machine
fi
install_packages "${BUILD_PACKAGES[@]}"
make_venv demo
exec .venv/bin/python -u docs/quickstart.py "${keep[@]}" ${source:+"$source"}
