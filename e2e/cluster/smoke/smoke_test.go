// Package smoke checks a running cluster: that it starts pods as builders need
// them. It needs `lapstrake-cluster up`.
package smoke

import (
	_ "embed"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"lapstrake.dev/e2e/cluster/internal/node"
)

//go:embed pods.yaml
var pods string

// running gives the cluster, or skips where none is up; where LAPSTRAKE_REQUIRE
// lists "node" that is a failure.
func running(t *testing.T) *node.Cluster {
	t.Helper()
	name := os.Getenv("LAPSTRAKE_CLUSTER")
	if name == "" {
		name = "lapstrake"
	}
	cluster, err := node.New(name, os.Getenv("LAPSTRAKE_CLUSTER_STATE"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := cluster.Record(); err != nil {
		if slices.Contains(strings.Split(os.Getenv("LAPSTRAKE_REQUIRE"), ","), "node") {
			t.Fatal(err)
		}
		t.Skipf("SKIPPED, needs a node: %v", err)
	}
	return cluster
}

func kubectl(t *testing.T, cluster *node.Cluster, input string, arguments ...string) (string, error) {
	t.Helper()
	command := exec.Command(filepath.Join(cluster.Bin(), "kubectl"), append([]string{"--kubeconfig", cluster.Kubeconfig()}, arguments...)...)
	command.Stdin = strings.NewReader(input)
	text, err := command.CombinedOutput()
	return string(text), err
}

func TestNodeStartsBuilderPodsInBothSandboxModes(t *testing.T) {
	cluster := running(t)
	must := func(input string, arguments ...string) string {
		t.Helper()
		text, err := kubectl(t, cluster, input, arguments...)
		if err != nil {
			t.Fatalf("kubectl %s: %v\n%s", strings.Join(arguments, " "), err, text)
		}
		return text
	}
	t.Cleanup(func() { must(pods, "delete", "--ignore-not-found", "--wait", "-f", "-") })
	must(pods, "apply", "-f", "-")
	for namespace, wants := range map[string][]string{
		"smoke-baseline": {"nested overlay works as uid 0 with pid 1", "on the volume: step"},
		"smoke-userns":   {"on the volume: step", "names resolve"},
	} {
		must("", "-n", namespace, "wait", "pod/builder", "--timeout=120s",
			"--for=jsonpath={.status.containerStatuses[0].state.terminated.exitCode}")
		logs := must("", "-n", namespace, "logs", "builder")
		for _, want := range wants {
			if !strings.Contains(logs, want) {
				t.Errorf("%s: the pod does not say %q:\n%s", namespace, want, logs)
			}
		}
		mapped := strings.Fields(logs)
		if len(mapped) < 4 || mapped[1] != "0" || mapped[2] == "0" {
			t.Errorf("%s: root of the pod is not an unprivileged user of the node:\n%s", namespace, logs)
		}
		claim := must("", "-n", namespace, "get", "pvc", "cache", "-o", "jsonpath={.spec.volumeName}")
		text, err := os.ReadFile(filepath.Join(cluster.Volumes(), claim, "upper", "file"))
		if err != nil || string(text) != "step\n" {
			t.Errorf("%s: the claim's folder on the node has %q, %v", namespace, text, err)
		}
	}
}

func TestNodeRefusesSysAdminWhereBaselineIsEnforced(t *testing.T) {
	cluster := running(t)
	pod := `{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "no", "namespace": "smoke-refuses"},
		"spec": {"containers": [{"name": "main", "image": "x", "securityContext": {"capabilities": {"add": ["SYS_ADMIN"]}}}]}}`
	namespace := `{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "smoke-refuses",
		"labels": {"pod-security.kubernetes.io/enforce": "baseline"}}}`
	t.Cleanup(func() { _, _ = kubectl(t, cluster, namespace, "delete", "--ignore-not-found", "-f", "-") })
	if text, err := kubectl(t, cluster, namespace, "apply", "-f", "-"); err != nil {
		t.Fatal(err, text)
	}
	text, err := kubectl(t, cluster, pod, "create", "-f", "-")
	if err == nil || !strings.Contains(text, "violates PodSecurity") {
		t.Errorf("the pod should be refused by admission, not: %v %s", err, text)
	}
}

func TestNodeSizedVolumeIsFullWhenItIsFull(t *testing.T) {
	cluster := running(t)
	objects := `{"apiVersion": "v1", "kind": "List", "items": [
		{"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "small", "namespace": "default"},
			"spec": {"storageClassName": "local-sized", "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "16Mi"}}}},
		{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "filler", "namespace": "default"},
			"spec": {"hostUsers": false, "restartPolicy": "Never", "dnsPolicy": "Default",
				"containers": [{"name": "main", "image": "10.244.0.1:5000/base/busybox:1", "volumeMounts": [{"name": "state", "mountPath": "/v"}],
					"command": ["sh", "-c", "dd if=/dev/zero of=/v/file bs=1M count=64; stat -c %s /v/file"]}],
				"volumes": [{"name": "state", "persistentVolumeClaim": {"claimName": "small"}}]}}]}`
	t.Cleanup(func() { _, _ = kubectl(t, cluster, objects, "delete", "--ignore-not-found", "-f", "-") })
	if text, err := kubectl(t, cluster, objects, "apply", "-f", "-"); err != nil {
		t.Fatal(err, text)
	}
	if text, err := kubectl(t, cluster, "", "wait", "pod/filler", "-n", "default", "--timeout=60s",
		"--for=jsonpath={.status.containerStatuses[0].state.terminated.exitCode}"); err != nil {
		t.Fatal(err, text)
	}
	logs, err := kubectl(t, cluster, "", "logs", "filler", "-n", "default")
	if err != nil || !strings.Contains(logs, "No space left on device") {
		t.Errorf("64 MiB went into a volume of 16 MiB: %v\n%s", err, logs)
	}
}

func TestNodeSecureRegistryWantsThePassword(t *testing.T) {
	cluster := running(t)
	password, err := os.ReadFile(cluster.RegistryPassword())
	if err != nil {
		t.Fatal(err)
	}
	client := trusting(t, cluster.RegistryCA())
	for _, try := range []struct {
		password string
		want     int
	}{{"wrong", http.StatusUnauthorized}, {string(password), http.StatusOK}} {
		request, err := http.NewRequest(http.MethodGet, "https://"+node.SecureRegistry+"/v2/", nil)
		if err != nil {
			t.Fatal(err)
		}
		request.SetBasicAuth(node.RegistryUser, try.password)
		response, err := client.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		response.Body.Close()
		if response.StatusCode != try.want {
			t.Errorf("the registry answers %s, want %d", response.Status, try.want)
		}
	}
}
