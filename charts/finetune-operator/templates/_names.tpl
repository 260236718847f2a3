{{- /* Every name is made here; templates only include. All take the root context. */}}

{{- /* Base name of all objects; at most 40 characters, so that every suffix and host name fits. */}}
{{- define "finetune-operator.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{ .Values.fullnameOverride }}
{{- else if contains .Chart.Name .Release.Name -}}
{{ .Release.Name | trunc 40 | trimSuffix "-" }}
{{- else -}}
{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 40 | trimSuffix "-" }}
{{- end -}}
{{- end }}

{{- /* Name of the Service, and host name of the progress endpoint. */}}
{{- define "finetune-operator.service" -}}
{{ include "finetune-operator.fullname" . }}
{{- end }}

{{- /* Host name that trainer pods report to. */}}
{{- define "finetune-operator.host" -}}
{{ include "finetune-operator.service" . }}.{{ .Release.Namespace }}.svc
{{- end }}

{{- /* Name of the Secret with the certificate of the progress endpoint. */}}
{{- define "finetune-operator.tls-secret" -}}
{{ .Values.tls.existingSecret | default (printf "%s-tls" (include "finetune-operator.fullname" .)) }}
{{- end }}

{{- /* Name of the Secret with the authority that signs it, where it is made by the chart or for it. */}}
{{- define "finetune-operator.ca-secret" -}}
{{ include "finetune-operator.fullname" . }}-ca
{{- end }}

{{- /* Namespace and name of what `helm test` makes. */}}
{{- define "finetune-operator.test-namespace" -}}
{{ .Values.test.namespace | default (first .Values.watchNamespaces) | default .Release.Namespace }}
{{- end }}
{{- define "finetune-operator.test" -}}
{{ include "finetune-operator.fullname" . }}-test
{{- end }}

{{- /* Cluster-scoped names carry the namespace: the same release name may exist in two. */}}
{{- define "finetune-operator.cluster-name" -}}
{{ .Release.Namespace }}-{{ include "finetune-operator.fullname" . }}
{{- end }}

{{- /* Reference of an image (values: repository, tag, digest); the digest beats the tag. */}}
{{- define "finetune-operator.image" -}}
{{- if .digest -}}
{{ .repository }}@{{ .digest }}
{{- else -}}
{{ .repository }}:{{ .tag }}
{{- end -}}
{{- end }}
