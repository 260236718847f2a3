{{- /*
The certificate of the progress endpoint, and the authority that signs it, as JSON: what is in the
cluster, else new ones. What is made is remembered for the rest of the rendering, because both Secrets
must be of the same. A new certificate comes from the old authority, so pods that trust it go on
reporting. Keys are of the elliptic kind: a handshake costs the operator a tenth of what it does with
RSA, and most senders make one for every report.
*/}}
{{- define "finetune-operator.tls" -}}
{{- if not (hasKey .Release "finetuneTls") -}}
{{- $service := include "finetune-operator.service" . -}}
{{- $host := include "finetune-operator.host" . -}}
{{- $old := lookup "v1" "Secret" .Release.Namespace (include "finetune-operator.ca-secret" .) -}}
{{- $ca := dict -}}
{{- $served := dict -}}
{{- if and (hasKey ($old.data | default dict) "tls.crt") (hasKey $old.data "tls.key") -}}
{{- $ca = buildCustomCert (index $old.data "tls.crt") (index $old.data "tls.key") -}}
{{- $served = lookup "v1" "Secret" .Release.Namespace (include "finetune-operator.tls-secret" .) -}}
{{- else -}}
{{- $ca = genCAWithKey (printf "%s-ca" $service) 3650 (genPrivateKey "ecdsa") -}}
{{- end -}}
{{- $data := $served.data | default dict -}}
{{- $now := now | unixEpoch -}}
{{- $made := index (($served.metadata | default dict).annotations | default dict) "finetune-operator.io/made" | default "0" -}}
{{- $age := sub (int64 $now) (int64 $made) -}}
{{- $complete := and (hasKey $data "tls.crt") (hasKey $data "tls.key") (hasKey $data "ca.crt") -}}
{{- if not (and $complete (lt $age (mul 86400 (int64 .Values.tls.renewAfterDays)))) -}}
{{- $names := list $service (printf "%s.%s" $service .Release.Namespace) $host -}}
{{- $cert := genSignedCertWithKey $host nil $names 3650 $ca (genPrivateKey "ecdsa") -}}
{{- $data = dict "tls.crt" (b64enc $cert.Cert) "tls.key" (b64enc $cert.Key) "ca.crt" (b64enc $ca.Cert) -}}
{{- $made = $now -}}
{{- end -}}
{{- $authority := dict "tls.crt" (b64enc $ca.Cert) "tls.key" (b64enc $ca.Key) -}}
{{- $served := pick $data "tls.crt" "tls.key" "ca.crt" -}}
{{- $_ := set .Release "finetuneTls" (dict "authority" $authority "served" $served "made" $made) -}}
{{- end -}}
{{ .Release.finetuneTls | toJson }}
{{- end }}

{{- /* Whether the chart itself makes the certificate. */}}
{{- define "finetune-operator.makes-tls" -}}
{{- if not (or .Values.tls.existingSecret .Values.tls.certManager.enabled) }}true{{ end -}}
{{- end }}
