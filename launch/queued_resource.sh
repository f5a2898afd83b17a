#!/bin/bash
# jaxlm launch tpu --accelerator-type=v5p-32 --zone=us-east5-a --image=registry.example.org/jaxlm:tpu --nfs=10.0.0.2:/runs --spot -- train llama_1b name=llama-1b
# Asks for TPU VMs in Google Cloud's queue; once they are here each mounts the share and trains. Run
# it again after a preemption: the request is made anew, and the run goes on. VMs cost until
#   gcloud compute tpus queued-resources delete llama-1b --force --zone=us-east5-a
set -euo pipefail

state="$(gcloud compute tpus queued-resources describe llama-1b --zone=us-east5-a \
  --format='value(state.state)' 2>/dev/null || true)"
case $state in
  "") ;;
  SUSPENDED | FAILED)
    gcloud compute tpus queued-resources delete llama-1b --zone=us-east5-a --force --quiet
    ;;
  *)
    echo "queued resource llama-1b is there already: $state" >&2
    exit 1
    ;;
esac

startup="$(mktemp)"
trap 'rm -f "$startup"' EXIT
cat >"$startup" <<'END_OF_STARTUP'
#!/bin/bash
# On each VM, as root, whenever it boots
set -eu
if ! mountpoint -q /workspace; then
  command -v mount.nfs >/dev/null || { apt-get update -q && apt-get install -y -q nfs-common; }
  mkdir -p /workspace
  mount -t nfs 10.0.0.2:/runs /workspace
fi
lost=0 # how often since it last saved and ended
while true; do
  code=0
  docker run --rm --privileged --net=host --user=root \
    -v /workspace:/workspace -w /workspace -e XDG_CACHE_HOME=/workspace/.cache \
    --entrypoint jaxlm registry.example.org/jaxlm:tpu train llama_1b name=llama-1b || code=$?
  case $code in
    75) lost=0 ;; # saved
    6 | 124) ((++lost <= 10)) || exit "$code" ;; # a process was lost or hung
    *) exit "$code" ;;
  esac
  echo "jaxlm ended with $code: again"
done
END_OF_STARTUP

gcloud compute tpus queued-resources create llama-1b --zone=us-east5-a \
  --node-id=llama-1b \
  --accelerator-type=v5p-32 --runtime-version=v2-alpha-tpuv5 \
  --spot \
  --metadata-from-file=startup-script="$startup"
