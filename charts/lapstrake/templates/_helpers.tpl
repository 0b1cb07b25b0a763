{{- define "lapstrake.name" -}}
{{- .Values.nameOverride | default .Chart.Name | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "lapstrake.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 53 | trimSuffix "-" }}
{{- else if contains (include "lapstrake.name" .) .Release.Name }}
{{- .Release.Name | trunc 53 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name (include "lapstrake.name" .) | trunc 53 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "lapstrake.selectorLabels" -}}
app.kubernetes.io/name: {{ include "lapstrake.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: operator
{{- end }}

{{- define "lapstrake.labels" -}}
{{ include "lapstrake.selectorLabels" . }}
app.kubernetes.io/part-of: lapstrake
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "lapstrake.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- .Values.serviceAccount.name | default (include "lapstrake.fullname" .) }}
{{- else }}
{{- .Values.serviceAccount.name | default "default" }}
{{- end }}
{{- end }}

{{/* An image's name: (dict "image" IMAGE "version" APPVERSION). */}}
{{- define "lapstrake.image" -}}
{{- if .image.digest -}}
{{ .image.repository }}@{{ .image.digest }}
{{- else -}}
{{ .image.repository }}:{{ .image.tag | default .version }}
{{- end }}
{{- end }}

{{/* The namespaces that are served, one a line; empty in the mode `cluster`. */}}
{{- define "lapstrake.namespaces" -}}
{{- if eq .Values.watch.mode "namespaces" }}
{{- .Values.watch.namespaces | default (list .Release.Namespace) | uniq | join "\n" }}
{{- end }}
{{- end }}

{{/* What the operator does in a namespace that it serves. It has no rule for Secrets. */}}
{{- define "lapstrake.rules" -}}
- apiGroups: [lapstrake.dev]
  resources: [imagebuilds]
  verbs: [get, list, watch]
- apiGroups: [lapstrake.dev]
  resources: [imagebuilds/status]
  verbs: [patch]
# Needed for owner references that block deletion, where the cluster checks that permission.
- apiGroups: [lapstrake.dev]
  resources: [imagebuilds/finalizers]
  verbs: [update]
- apiGroups: [""]
  resources: [pods]
  # A pod is changed once: its gate is taken away when its cache slot is its own.
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [configmaps, persistentvolumeclaims]
  verbs: [get, list, create, patch, delete]
# The names of the Secrets for registries that a ServiceAccount has; their contents are the kubelet's to read.
- apiGroups: [""]
  resources: [serviceaccounts]
  verbs: [get]
# Progress and the last lines of a step that failed.
- apiGroups: [""]
  resources: [pods/log]
  verbs: [get]
# The scheduler's and the kubelet's reasons for a pod that does not start.
- apiGroups: [""]
  resources: [events]
  verbs: [get, list]
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create]
{{- end }}
