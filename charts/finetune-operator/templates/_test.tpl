{{- /* Metadata of an object of `helm test`: a list of root context, namespace (empty: none), weight. */}}
{{- define "finetune-operator.test-metadata" -}}
{{- $root := index . 0 -}}
{{- with index . 1 }}
namespace: {{ . }}
{{- end }}
labels:
  {{- include "finetune-operator.test-labels" $root | nindent 2 }}
annotations:
  helm.sh/hook: test
  helm.sh/hook-weight: {{ index . 2 | quote }}
  helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
{{- end }}

{{- /* What both pods of `helm test` have in common: they fit the Pod Security Standard `restricted`. */}}
{{- define "finetune-operator.test-pod" -}}
restartPolicy: Never
enableServiceLinks: false
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  runAsNonRoot: true
  runAsUser: 65532
  runAsGroup: 65532
  fsGroup: 65532
  seccompProfile:
    type: RuntimeDefault
{{- end }}

{{- define "finetune-operator.test-container" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
{{- end }}

{{- /* Labels by which the Service and the budget find the operator must not be on other pods. */}}
{{- define "finetune-operator.test-labels" -}}
app.kubernetes.io/name: finetune-operator-test
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: finetune-operator
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}
