{{- define "sidekey.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride }}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" }}
{{- else if contains $name .Release.Name }}
{{- .Release.Name | trunc 50 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 50 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "sidekey.hub.name" -}}
{{ include "sidekey.fullname" . }}-hub
{{- end }}

{{- define "sidekey.signer.name" -}}
{{ include "sidekey.fullname" . }}-signer
{{- end }}

{{/* Takes a list: the root, and the component. */}}
{{- define "sidekey.selector" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ default $root.Chart.Name $root.Values.nameOverride | trunc 63 | trimSuffix "-" }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{/* Takes a list: the root, and the component. */}}
{{- define "sidekey.labels" -}}
{{- $root := index . 0 -}}
{{ include "sidekey.selector" . }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
app.kubernetes.io/part-of: sidekey
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" }}
{{- with $root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "sidekey.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{ .repository }}@{{ .digest }}
{{- else -}}
{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}
{{- end -}}
{{- end -}}
{{- end }}

{{/* Takes a list: the values of the account, and the name that it has by default. */}}
{{- define "sidekey.serviceAccount" -}}
{{- $account := index . 0 -}}
{{- $account.name | default (ternary (index . 1) "default" $account.create) }}
{{- end }}

{{/* The certificate needs this name. */}}
{{- define "sidekey.hub.host" -}}
{{ include "sidekey.hub.name" . }}.{{ .Release.Namespace }}.svc
{{- end }}

{{- define "sidekey.hub.url" -}}
https://{{ include "sidekey.hub.host" . }}:{{ .Values.hub.service.port }}
{{- end }}
