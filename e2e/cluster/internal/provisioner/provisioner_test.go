package provisioner

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"lapstrake.dev/e2e/cluster/internal/api"
)

func claim(uid string, change func(*Claim)) Claim {
	var c Claim
	class := ClassName
	c.Metadata.Name, c.Metadata.Namespace, c.Metadata.UID = "claim-"+uid, "shop", uid
	c.Metadata.Annotations = map[string]string{selectedNode: "node"}
	c.Spec.StorageClassName = &class
	c.Spec.AccessModes = []string{"ReadWriteOnce"}
	c.Spec.Resources.Requests = map[string]string{"storage": "1Gi"}
	if change != nil {
		change(&c)
	}
	return c
}

func volume(name, phase string, change func(*Volume)) Volume {
	var v Volume
	v.Metadata.Name, v.Status.Phase = name, phase
	v.Metadata.Annotations = map[string]string{provisionedBy: driver}
	v.Spec.ReclaimPolicy = "Delete"
	if change != nil {
		change(&v)
	}
	return v
}

func TestOnlyClaimsThatWaitForThisNodeGetAVolume(t *testing.T) {
	other := "other"
	for name, c := range map[string]struct {
		claim Claim
		want  bool
	}{
		"waiting for this node":    {claim("1", nil), true},
		"no pod yet":               {claim("1", func(c *Claim) { c.Metadata.Annotations = nil }), false},
		"waiting for another node": {claim("1", func(c *Claim) { c.Metadata.Annotations[selectedNode] = "far" }), false},
		"another class":            {claim("1", func(c *Claim) { c.Spec.StorageClassName = &other }), false},
		"no class":                 {claim("1", func(c *Claim) { c.Spec.StorageClassName = nil }), false},
		"bound":                    {claim("1", func(c *Claim) { c.Spec.VolumeName = "local-1" }), false},
		"a block device":           {claim("1", func(c *Claim) { c.Spec.VolumeMode = "Block" }), false},
	} {
		if got := len(MakePlan("node", []Claim{c.claim}, nil).Create) == 1; got != c.want {
			t.Errorf("%s: a volume is made: %v", name, got)
		}
	}
}

func TestAClaimWhoseVolumeIsThereAlreadyGetsNoSecond(t *testing.T) {
	plan := MakePlan("node", []Claim{claim("1", nil)}, []Volume{volume("local-1", "Available", nil)})
	if len(plan.Create) != 0 || !plan.Keep["local-1"] {
		t.Errorf("got %+v", plan)
	}
}

func TestReleasedVolumesOfOursAreDeletedAndNoOthers(t *testing.T) {
	deleted := "2026-01-01T00:00:00Z"
	plan := MakePlan("node", nil, []Volume{
		volume("released", "Released", nil),
		volume("bound", "Bound", nil),
		volume("retained", "Released", func(v *Volume) { v.Spec.ReclaimPolicy = "Retain" }),
		volume("foreign", "Released", func(v *Volume) { v.Metadata.Annotations = nil }),
		volume("going", "Released", func(v *Volume) { v.Metadata.DeletionTimestamp = &deleted }),
	})
	if !slices.Equal(plan.Delete, []string{"released"}) {
		t.Errorf("deletes %v", plan.Delete)
	}
	if len(plan.Keep) != 2 || !plan.Keep["bound"] || !plan.Keep["retained"] {
		t.Errorf("keeps %v", plan.Keep)
	}
}

// cluster is a small API server with claims and volumes.
type cluster struct {
	mutex   sync.Mutex
	claims  []Claim
	volumes []Volume
}

func (c *cluster) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	switch {
	case r.Method == http.MethodPost:
		var made Volume
		if err := json.NewDecoder(r.Body).Decode(&made); err != nil {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		made.Status.Phase = "Bound"
		c.volumes = append(c.volumes, made)
		w.WriteHeader(http.StatusCreated)
	case r.Method == http.MethodDelete:
		name := strings.TrimPrefix(r.URL.Path, volumesPath+"/")
		c.volumes = slices.DeleteFunc(c.volumes, func(v Volume) bool { return v.Metadata.Name == name })
	case r.URL.Path == claimsPath:
		_ = json.NewEncoder(w).Encode(list[Claim]{Items: c.claims})
	default:
		_ = json.NewEncoder(w).Encode(list[Volume]{Items: c.volumes})
	}
}

func client(t *testing.T, server *httptest.Server) *api.Client {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, server.Certificate(), server.Certificate(), &private.PublicKey, server.TLS.Certificates[0].PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalECPrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	block := func(kind string, der []byte) []byte {
		return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
	}
	made, err := api.New(server.URL, block("CERTIFICATE", server.Certificate().Raw), block("CERTIFICATE", der), block("EC PRIVATE KEY", keyDER))
	if err != nil {
		t.Fatal(err)
	}
	return made
}

func TestAFolderComesWithTheClaimAndGoesWithIt(t *testing.T) {
	fake := &cluster{claims: []Claim{claim("1", nil)}}
	server := httptest.NewTLSServer(fake)
	defer server.Close()
	p := Provisioner{Client: client(t, server), Node: "node", Folder: t.TempDir()}
	orphan := filepath.Join(p.Folder, "local-orphan")
	if err := os.MkdirAll(filepath.Join(orphan, "deep"), 0o755); err != nil {
		t.Fatal(err)
	}

	if err := p.look(context.Background()); err != nil {
		t.Fatal(err)
	}
	folder := filepath.Join(p.Folder, "local-1")
	info, err := os.Stat(folder)
	if err != nil || info.Mode().Perm() != 0o777 {
		t.Fatalf("the claim's folder: %v %v", info, err)
	}
	if len(fake.volumes) != 1 || fake.volumes[0].Metadata.Name != "local-1" {
		t.Fatalf("volumes: %+v", fake.volumes)
	}
	if _, err := os.Stat(orphan); err == nil {
		t.Error("a folder without a volume was kept")
	}

	fake.claims, fake.volumes[0].Status.Phase = nil, "Released"
	if err := p.look(context.Background()); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(folder); err == nil || len(fake.volumes) != 0 {
		t.Errorf("folder or volume outlived the claim: %+v", fake.volumes)
	}
}
