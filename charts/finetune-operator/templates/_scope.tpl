{{- /* Values that contradict each other are refused here, once, before anything is rendered. */}}
{{- define "finetune-operator.check" -}}
{{- if not .Values.clusterObjects -}}
{{- if not .Values.watchNamespaces -}}
{{- fail "clusterObjects=false needs watchNamespaces: without ClusterRoles the operator can have rights in named namespaces only" -}}
{{- end -}}
{{- if .Values.profiles -}}
{{- fail "clusterObjects=false excludes profiles: a FineTuneProfile belongs to no namespace" -}}
{{- end -}}
{{- end -}}
{{- if and .Values.tls.existingSecret .Values.tls.certManager.enabled -}}
{{- fail "tls.existingSecret and tls.certManager.enabled exclude each other: only one can make the certificate" -}}
{{- end -}}
{{- $test := include "finetune-operator.test-namespace" . -}}
{{- if and .Values.watchNamespaces (not (has $test .Values.watchNamespaces)) -}}
{{- fail (printf "test.namespace %s is not in watchNamespaces: the job of `helm test` would never start" $test) -}}
{{- end -}}
{{- end }}

{{- /* Name of the operator's PriorityClass; empty: none. Its value cannot change, so it is part of the name. */}}
{{- define "finetune-operator.priority-class" -}}
{{- if .Values.operator.priorityClassName -}}
{{ .Values.operator.priorityClassName }}
{{- else if and .Values.clusterObjects .Values.operator.priority -}}
{{ include "finetune-operator.cluster-name" . }}-{{ int .Values.operator.priority }}
{{- end -}}
{{- end }}
