{{/* Fails with every problem that the schema can't see. */}}
{{- define "sidekey.validate" -}}
{{- $problems := list }}
{{- $namespace := .Release.Namespace }}
{{- if and (or .Values.hub.enabled .Values.signer.enabled) (not .Values.image.repository) }}
{{- $problems = append $problems "image.repository is empty: build the image with `docker build -t REGISTRY/sidekey:VERSION .`, push it, and set image.repository to REGISTRY/sidekey" }}
{{- end }}
{{- if .Values.hub.enabled }}
{{- with .Values.hub }}
{{- if not .tls.secretName }}
{{- $problems = append $problems (printf "hub.tls.secretName is empty: create a Secret with a certificate for the DNS name %s, by cert-manager or `kubectl create secret tls sidekey-hub-tls -n %s --cert=hub.pem --key=hub.key`, and name it here" (include "sidekey.hub.host" $) $namespace) }}
{{- end }}
{{- if not .sidecarIdentities }}
{{- $problems = append $problems (printf "hub.sidecarIdentities is empty: say who may report, for example `- {workloads: [orders], tokenSecret: {name: orders-hub}}`, with the digest of a token in `kubectl create secret generic orders-hub -n %s --from-file=sha256=orders.sha256`" $namespace) }}
{{- end }}
{{- if and (gt (int .replicas) 1) (not .database.url) }}
{{- $problems = append $problems "hub.replicas is more than 1, which SQLite can't serve: set hub.database.url to a PostgreSQL database, or hub.replicas to 1" }}
{{- end }}
{{- if and .database.passwordSecret.name (not .database.url) }}
{{- $problems = append $problems "hub.database.passwordSecret.name has no effect without hub.database.url" }}
{{- end }}
{{- if and .tls.clientNames (not .tls.clientCa.secretName) }}
{{- $problems = append $problems "hub.tls.clientNames has no effect without hub.tls.clientCa.secretName" }}
{{- end }}
{{- range $index, $entry := .sidecarIdentities }}
{{- $problems = concat $problems (include "sidekey.credentialProblems" (list (printf "hub.sidecarIdentities[%d]" $index) $entry $) | fromJsonArray) }}
{{- end }}
{{- range $index, $entry := .operators }}
{{- $problems = concat $problems (include "sidekey.credentialProblems" (list (printf "hub.operators[%d]" $index) $entry $) | fromJsonArray) }}
{{- end }}
{{- end }}
{{- end }}
{{- if .Values.signer.enabled }}
{{- with .Values.signer }}
{{- if not .hub.tokenSecret.name }}
{{- $problems = append $problems (printf "signer.hub.tokenSecret.name is empty: list the signer in hub.operators with the role signer, put its token into `kubectl create secret generic sidekey-signer -n %s --from-file=token=signer.token`, and name that here" $namespace) }}
{{- end }}
{{- if not (regexMatch "(?m)^\\s*\\[\\[keyring\\]\\]" .config) }}
{{- $problems = append $problems "signer.config has no [[keyring]]: list the keyrings that the signer may change, as docs/rollout.md describes" }}
{{- end }}
{{- if regexMatch "(?m)^\\s*(\\[hub\\]|state_dir\\s*=)" .config }}
{{- $problems = append $problems "signer.config has [hub] or state_dir, which the chart writes: use signer.hub and signer.persistence" }}
{{- end }}
{{- if and (not .hub.url) (not $.Values.hub.enabled) }}
{{- $problems = append $problems "signer.hub.url is empty, and this release has no hub: say where the hub is" }}
{{- end }}
{{- end }}
{{- end }}
{{- with .Values.sidecar }}
{{- if and .enabled (not .hub.url) (not $.Values.hub.enabled) }}
{{- $problems = append $problems "sidecar.hub.url is empty, and this release has no hub: say where the hub is, or set sidecar.enabled to false" }}
{{- end }}
{{- if and .enabled .hub.tokenFile .hub.certificateFile }}
{{- $problems = append $problems "sidecar.hub.tokenFile and sidecar.hub.certificateFile exclude each other: set one of them to \"\"" }}
{{- end }}
{{- if and .enabled (ne (empty .hub.certificateFile) (empty .hub.keyFile)) }}
{{- $problems = append $problems "sidecar.hub.certificateFile and sidecar.hub.keyFile go together" }}
{{- end }}
{{- if and .enabled (not .hub.tokenFile) (not .hub.certificateFile) }}
{{- $problems = append $problems "sidecar.hub has neither tokenFile nor certificateFile: sidecars show one of them to the hub" }}
{{- end }}
{{- end }}
{{- with .Values.metrics.serviceMonitor }}
{{- if and .enabled (not $.Values.hub.enabled) }}
{{- $problems = append $problems "metrics.serviceMonitor.enabled has no effect without hub.enabled" }}
{{- else if and .enabled (not .tokenSecret.name) }}
{{- $problems = append $problems (printf "metrics.serviceMonitor.tokenSecret.name is empty: list prometheus in hub.operators with the role viewer, put its token into `kubectl create secret generic sidekey-prometheus -n %s --from-file=token=prometheus.token`, and name that here" $namespace) }}
{{- end }}
{{- end }}
{{- range .Values.metrics.prometheusRule.disabled }}
{{- if not (contains (printf "alert: %s\n" .) ($.Files.Get "files/alerts.yaml")) }}
{{- $problems = append $problems (printf "metrics.prometheusRule.disabled: there is no alert %s" .) }}
{{- end }}
{{- end }}
{{- if $problems }}
{{- printf "\n\n- %s\n" (join "\n- " $problems) | fail }}
{{- end }}
{{- end }}

{{/* Takes a list: the path of an entry, the entry, and the root. Returns JSON. */}}
{{- define "sidekey.credentialProblems" -}}
{{- $problems := list }}
{{- $path := index . 0 }}
{{- $entry := index . 1 }}
{{- if eq (empty $entry.tokenSecret) (empty $entry.certificate) }}
{{- $problems = append $problems (printf "%s needs either tokenSecret or certificate" $path) }}
{{- end }}
{{- if and $entry.certificate (not (index . 2).Values.hub.tls.clientCa.secretName) }}
{{- $problems = append $problems (printf "%s.certificate has no effect without hub.tls.clientCa.secretName: create a Secret with the authorities' certificates, `kubectl create secret generic sidekey-clients --from-file=ca.crt=clients.pem`" $path) }}
{{- end }}
{{- toJson $problems }}
{{- end }}
