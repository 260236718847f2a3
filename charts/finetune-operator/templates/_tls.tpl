{{- /*
The certificate of the progress endpoint, as the JSON of a Secret's `data`: the one in the cluster,
else a new one. A new one is remembered for the rest of the rendering, because the Secret and the
checksum on the Deployment must be of the same certificate. Its key is of the elliptic kind: a handshake
costs the operator a tenth of what it does with RSA, and most senders make one for every report.
*/}}
{{- define "finetune-operator.tls" -}}
{{- if not (hasKey .Release "finetuneTls") -}}
{{- $name := include "finetune-operator.tls-secret" . -}}
{{- $found := (lookup "v1" "Secret" .Release.Namespace $name).data | default dict -}}
{{- if not (and (hasKey $found "tls.crt") (hasKey $found "tls.key") (hasKey $found "ca.crt")) -}}
{{- $service := include "finetune-operator.service" . -}}
{{- $host := include "finetune-operator.host" . -}}
{{- $names := list $service (printf "%s.%s" $service .Release.Namespace) $host -}}
{{- $ca := genCA (printf "%s-ca" $service) 3650 -}}
{{- $cert := genSignedCertWithKey $host nil $names 3650 $ca (genPrivateKey "ecdsa") -}}
{{- $found = dict "tls.crt" (b64enc $cert.Cert) "tls.key" (b64enc $cert.Key) "ca.crt" (b64enc $ca.Cert) -}}
{{- end -}}
{{- $_ := set .Release "finetuneTls" (pick $found "tls.crt" "tls.key" "ca.crt") -}}
{{- end -}}
{{ .Release.finetuneTls | toJson }}
{{- end }}

{{- /* Changes with the certificate, so that a new one restarts the operator. */}}
{{- define "finetune-operator.tls-checksum" -}}
{{- if .Values.tls.existingSecret -}}
{{ (lookup "v1" "Secret" .Release.Namespace .Values.tls.existingSecret).data | default dict | toJson | sha256sum }}
{{- else -}}
{{ include "finetune-operator.tls" . | sha256sum }}
{{- end -}}
{{- end }}
