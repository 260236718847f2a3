{{- /*
What running jobs needs, in the namespaces that are watched: what finetune_operator/cluster.py and the
watches of handlers.py do, and no more. Server-side apply needs `patch`, and `create` where the object
is new. Children go with their owner, by the garbage collector. Deleted is a job whose TTL is over, and
a pod that a dead node does not let go, after its status was set to Failed. Of what a namespace has
besides, one by name, never all: the operator cannot look around there. Events are listed of a job's
own pods and Kubernetes Jobs: a pod that a quota refuses is told of nowhere else.
*/}}
{{- define "finetune-operator.job-rules" -}}
- apiGroups: [finetune-operator.io]
  resources: [finetunejobs]
  verbs: [get, list, watch, delete]
- apiGroups: [finetune-operator.io]
  resources: [finetunejobs/status]
  verbs: [patch]
- apiGroups: [batch]
  resources: [jobs]
  verbs: [get, list, watch, create, patch]
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch, delete]
- apiGroups: [""]
  resources: [pods/status]
  verbs: [patch]
- apiGroups: [""]
  resources: [configmaps]
  verbs: [get, create]
- apiGroups: [""]
  resources: [persistentvolumeclaims, services]
  verbs: [get, create, patch]
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs: [get, create, patch]
- apiGroups: [""]
  resources: [events]
  verbs: [create, list]
{{- end }}
