#!/bin/bash
# {{ made_by }}
# Asks for TPU VMs in Google Cloud's queue; once they are here each mounts the share and trains. Run
# it again after a preemption: the request is made anew, and the run goes on. VMs cost until
#   gcloud compute tpus queued-resources delete {{ name }} --force {{ where }}
set -euo pipefail

state="$(gcloud compute tpus queued-resources describe {{ name }} {{ where }} \
  --format='value(state.state)' 2>/dev/null || true)"
case $state in
  "") ;;
  SUSPENDED | FAILED)
    gcloud compute tpus queued-resources delete {{ name }} {{ where }} --force --quiet
    ;;
  *)
    echo "queued resource {{ name }} is there already: $state" >&2
    exit 1
    ;;
esac

startup="$(mktemp)"
trap 'rm -f "$startup"' EXIT
cat >"$startup" <<'END_OF_STARTUP'
#!/bin/bash
# On each VM, as root, whenever it boots
set -eu
if ! mountpoint -q {{ workspace }}; then
  command -v mount.nfs >/dev/null || { apt-get update -q && apt-get install -y -q nfs-common; }
  mkdir -p {{ workspace }}
  mount -t nfs {{ layout.nfs }} {{ workspace }}
fi
{% if config %}
mkdir -p {{ sent | replace("/run.yaml", "") }}
cat >{{ sent }} <<'END_OF_CONFIG'
{{ config | trim }}
END_OF_CONFIG
{% endif %}
{% if registry %}
export HOME=/root # where docker keeps who may read the registry
gcloud auth configure-docker {{ registry | sh }} --quiet
{% endif %}
lost=0 # how often since it last saved and ended
while true; do
  code=0
  docker run --rm --privileged --net=host --user=root \
    -v {{ workspace }}:{{ workspace }} -w {{ workspace }} -e XDG_CACHE_HOME={{ workspace }}/.cache \
{% if config %}
    -v {{ sent }}:{{ sent }}:ro \
{% endif %}
    --entrypoint jaxlm {{ layout.image | sh }} {{ command }} || code=$?
  case $code in
    {{ saved }}) lost=0 ;; # saved
    {{ again }}) ((++lost <= {{ restarts }})) || exit "$code" ;; # a process was lost or hung
    *) exit "$code" ;;
  esac
  echo "jaxlm ended with $code: again"
done
END_OF_STARTUP

gcloud compute tpus queued-resources create {{ name }} {{ where }} \
{% if layout.node_count > 1 %}
  --node-count={{ layout.node_count }} --node-prefix={{ name }} \
{% else %}
  --node-id={{ name }} \
{% endif %}
  --accelerator-type={{ layout.accelerator_type }} --runtime-version={{ runtime }} \
{% if layout.spot %}
  --spot \
{% endif %}
  --metadata-from-file=startup-script="$startup"
