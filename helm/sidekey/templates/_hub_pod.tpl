{{- define "sidekey.hub.pod" -}}
metadata:
  labels:
    {{- include "sidekey.labels" (list . "hub") | nindent 4 }}
    {{- with .Values.hub.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  annotations:
    # The hub reads its config when it starts.
    checksum/config: {{ include "sidekey.hub.config" . | sha256sum }}
    kubectl.kubernetes.io/default-container: hub
    {{- with .Values.hub.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  serviceAccountName: {{ include "sidekey.serviceAccount" (list .Values.hub.serviceAccount (include "sidekey.hub.name" .)) }}
  automountServiceAccountToken: false
  enableServiceLinks: false
  {{- with .Values.imagePullSecrets }}
  imagePullSecrets:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  terminationGracePeriodSeconds: {{ .Values.hub.terminationGracePeriodSeconds }}
  {{- include "sidekey.podSecurity" . | nindent 2 }}
  {{- include "sidekey.scheduling" .Values.hub | nindent 2 }}
  topologySpreadConstraints:
    {{- if .Values.hub.topologySpreadConstraints }}
    {{- toYaml .Values.hub.topologySpreadConstraints | nindent 4 }}
    {{- else }}
    {{- range list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
    - topologyKey: {{ . }}
      maxSkew: 1
      whenUnsatisfiable: ScheduleAnyway
      labelSelector:
        matchLabels:
          {{- include "sidekey.selector" (list $ "hub") | nindent 10 }}
    {{- end }}
    {{- end }}
  containers:
    - name: hub
      image: {{ include "sidekey.image" . }}
      imagePullPolicy: {{ .Values.image.pullPolicy }}
      command: [/usr/local/bin/sidekey-hub]
      args: [serve, --config, /etc/sidekey-hub/config/hub.toml]
      {{- with .Values.hub.env }}
      env:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      ports:
        - {name: https, containerPort: 9465, protocol: TCP}
      {{- include "sidekey.containerSecurity" . | nindent 6 }}
      # /healthz asks for no credential. The kubelet doesn't check the certificate.
      startupProbe:
        httpGet: {path: /healthz, port: https, scheme: HTTPS}
        periodSeconds: 2
        failureThreshold: 60
      readinessProbe:
        httpGet: {path: /healthz, port: https, scheme: HTTPS}
        periodSeconds: 5
        timeoutSeconds: 3
      livenessProbe:
        httpGet: {path: /healthz, port: https, scheme: HTTPS}
        periodSeconds: 10
        timeoutSeconds: 5
        failureThreshold: 6
      resources:
        {{- toYaml .Values.hub.resources | nindent 8 }}
      volumeMounts:
        - {name: config, mountPath: /etc/sidekey-hub/config, readOnly: true}
        - {name: tls, mountPath: /etc/sidekey-hub/tls, readOnly: true}
        {{- if .Values.hub.tls.clientCa.secretName }}
        - {name: client-ca, mountPath: /etc/sidekey-hub/client-ca, readOnly: true}
        {{- end }}
        {{- if include "sidekey.hub.tokens" . }}
        - {name: tokens, mountPath: /etc/sidekey-hub/tokens, readOnly: true}
        {{- end }}
        {{- if .Values.hub.database.passwordSecret.name }}
        - {name: database, mountPath: /etc/sidekey-hub/database, readOnly: true}
        {{- end }}
        {{- if not .Values.hub.database.url }}
        - {name: state, mountPath: /var/lib/sidekey-hub}
        {{- end }}
  volumes:
    - name: config
      configMap:
        name: {{ include "sidekey.hub.name" . }}
    # Only the group reads these, which the hub insists on.
    - name: tls
      secret:
        secretName: {{ .Values.hub.tls.secretName }}
        defaultMode: 0440
        items:
          - {key: tls.crt, path: tls.crt}
          - {key: tls.key, path: tls.key}
    {{- with .Values.hub.tls.clientCa }}
    {{- if .secretName }}
    - name: client-ca
      secret:
        secretName: {{ .secretName }}
        defaultMode: 0440
        items:
          - {key: {{ .key | quote }}, path: ca.crt}
    {{- end }}
    {{- end }}
    {{- with include "sidekey.hub.tokens" . }}
    - name: tokens
      projected:
        defaultMode: 0440
        sources:
          {{- . | nindent 10 }}
    {{- end }}
    {{- with .Values.hub.database.passwordSecret }}
    {{- if .name }}
    - name: database
      secret:
        secretName: {{ .name }}
        defaultMode: 0440
        items:
          - {key: {{ .key | quote }}, path: password}
    {{- end }}
    {{- end }}
    {{- if not .Values.hub.database.url }}
    - name: state
      persistentVolumeClaim:
        claimName: {{ include "sidekey.claim" (list .Values.hub (include "sidekey.hub.name" .)) }}
    {{- end }}
{{- end }}
