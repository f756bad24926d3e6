{{/* The parts of pods that the Pod Security Standard "restricted" asks for. */}}
{{- define "sidekey.podSecurity" -}}
securityContext:
  runAsNonRoot: true
  {{- with .Values.runAs.user }}
  runAsUser: {{ . | int64 }}
  {{- end }}
  {{- with .Values.runAs.group }}
  runAsGroup: {{ . | int64 }}
  fsGroup: {{ . | int64 }}
  # A recursive change at every start would open private files to the group.
  fsGroupChangePolicy: OnRootMismatch
  {{- end }}
  seccompProfile:
    type: RuntimeDefault
{{- end }}

{{- define "sidekey.containerSecurity" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
{{- end }}

{{/* Takes the values of a component. */}}
{{- define "sidekey.scheduling" -}}
{{- with .priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* Takes a list: the values of a component, and the name of its claim. */}}
{{- define "sidekey.claim" -}}
{{- $persistence := (index . 0).persistence -}}
{{ $persistence.existingClaim | default (index . 1) }}
{{- end }}

{{/* Takes a list: the root, the component, its values, and the name of the claim. */}}
{{- define "sidekey.volumeClaim" -}}
{{- $root := index . 0 -}}
{{- $persistence := (index . 2).persistence -}}
apiVersion: v1
kind: PersistentVolumeClaim
metadata:
  name: {{ index . 3 }}
  namespace: {{ $root.Release.Namespace }}
  labels:
    {{- include "sidekey.labels" (list $root (index . 1)) | nindent 4 }}
  {{- if $persistence.keep }}
  annotations:
    helm.sh/resource-policy: keep
  {{- end }}
spec:
  accessModes: [{{ $persistence.accessMode }}]
  {{- with $persistence.storageClass }}
  storageClassName: {{ . }}
  {{- end }}
  resources:
    requests:
      storage: {{ $persistence.size }}
{{- end }}

{{/* Takes a list: the root, the component, its values, and the name that the account has. */}}
{{- define "sidekey.account" -}}
{{- $root := index . 0 -}}
apiVersion: v1
kind: ServiceAccount
metadata:
  name: {{ index . 3 }}
  namespace: {{ $root.Release.Namespace }}
  labels:
    {{- include "sidekey.labels" (list $root (index . 1)) | nindent 4 }}
  {{- with (index . 2).serviceAccount.annotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
automountServiceAccountToken: false
{{- end }}
