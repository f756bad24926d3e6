{{/* JSON strings and arrays of strings are TOML as well. */}}

{{- define "sidekey.credential" -}}
{{- with .tokenSecret -}}
token_file = {{ printf "/etc/sidekey-hub/tokens/%s/%s" .name (.key | default "sha256") | toJson }}
{{- end }}
{{- with .certificate -}}
certificate = {{ toJson . }}
{{- end }}
{{- end }}

{{- define "sidekey.hub.config" -}}
{{- with .Values.hub -}}
listen = "0.0.0.0:9465"
{{- if not .database.url }}
state_dir = "/var/lib/sidekey-hub"
{{- end }}
report_seconds = {{ int .reportSeconds }}
lost_after = {{ toJson .lostAfter }}
drain_timeout = {{ toJson .drainTimeout }}

[log]
level = {{ toJson .log.level }}
format = {{ toJson .log.format }}

[limits]
connections = {{ int .limits.connections }}
instances = {{ int .limits.instances }}
report = {{ toJson .limits.report }}
body_memory = {{ toJson .limits.bodyMemory }}

[tls]
certificate = "/etc/sidekey-hub/tls/tls.crt"
key = "/etc/sidekey-hub/tls/tls.key"
min_version = {{ toJson .tls.minVersion }}
{{- if .tls.clientCa.secretName }}
client_ca = "/etc/sidekey-hub/client-ca/ca.crt"
{{- end }}
{{- with .tls.clientNames }}
client_names = {{ toJson . }}
{{- end }}
{{- with .database }}
{{- if .url }}

[database]
url = {{ toJson .url }}
{{- if .passwordSecret.name }}
password_file = "/etc/sidekey-hub/database/password"
{{- end }}
{{- end }}
{{- end }}
{{- range .sidecarIdentities }}

[[sidecar_identity]]
{{ include "sidekey.credential" . }}
workloads = {{ toJson .workloads }}
{{- with .names }}
names = {{ toJson . }}
{{- end }}
{{- end }}
{{- range .operators }}

[[operator]]
name = {{ toJson .name }}
role = {{ toJson .role }}
{{ include "sidekey.credential" . }}
{{- end }}
{{- range .workloads }}

[[workload]]
name = {{ toJson .name }}
keyrings = {{ toJson .keyrings }}
{{- with .maxInterval }}
max_interval = {{ toJson . }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{/* The digests of all tokens, each Secret's key once. */}}
{{- define "sidekey.hub.tokens" -}}
{{- $seen := dict }}
{{- range concat .Values.hub.sidecarIdentities .Values.hub.operators }}
{{- with .tokenSecret }}
{{- $key := .key | default "sha256" }}
{{- $path := printf "%s/%s" .name $key }}
{{- if not (hasKey $seen $path) }}
{{- $_ := set $seen $path true }}
- secret:
    name: {{ .name }}
    items:
      - {key: {{ $key | quote }}, path: {{ $path | quote }}}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{- define "sidekey.signer.config" -}}
state_dir = "/var/lib/sidekey-signer"

{{ .Values.signer.config | trim }}

[hub]
url = {{ .Values.signer.hub.url | default (include "sidekey.hub.url" .) | toJson }}
token_file = "/etc/sidekey/hub/token"
{{- if .Values.signer.hub.ca.secretName }}
ca_file = "/etc/sidekey/hub-ca/ca.crt"
{{- end }}
{{- end }}
