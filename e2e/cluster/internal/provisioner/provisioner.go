// Package provisioner gives claims of the cluster's storage class a folder on
// the node, and takes the folder away when the claim is gone.
//
// Level-triggered: every change of a claim or a volume makes it look at all of
// them, so that a restart or a lost event loses nothing. Holds: a folder
// without a volume of its name, and a released volume, are both removed. Never:
// gives two claims one folder (the name is made from the claim's UID).
package provisioner

import (
	"context"
	"fmt"
	"log"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"lapstrake.dev/e2e/cluster/internal/api"
	"lapstrake.dev/e2e/cluster/internal/host"
)

const (
	// ClassName is the default storage class: a folder, as large as the disk.
	ClassName = "local"
	// SizedClassName is a class whose volumes hold no more than was asked for,
	// to see what a full disk does: each is a file system of its own.
	SizedClassName = "local-sized"
	// driver is what the class names as its provisioner.
	driver = "lapstrake.dev/local"

	selectedNode  = "volume.kubernetes.io/selected-node"
	provisionedBy = "pv.kubernetes.io/provisioned-by"

	claimsPath  = "/api/v1/persistentvolumeclaims"
	volumesPath = "/api/v1/persistentvolumes"

	// lookEvery bounds how long a lost event can go unseen.
	lookEvery = 15 * time.Second
)

// Classes are the storage classes by their names.
func Classes() map[string]map[string]any {
	return map[string]map[string]any{
		ClassName:      class(ClassName, "true"),
		SizedClassName: class(SizedClassName, "false"),
	}
}

func class(name, isDefault string) map[string]any {
	return map[string]any{
		"apiVersion": "storage.k8s.io/v1",
		"kind":       "StorageClass",
		"metadata": map[string]any{
			"name":        name,
			"annotations": map[string]any{"storageclass.kubernetes.io/is-default-class": isDefault},
		},
		"provisioner":       driver,
		"reclaimPolicy":     "Delete",
		"volumeBindingMode": "WaitForFirstConsumer",
	}
}

// Claim is what of a PersistentVolumeClaim matters here.
type Claim struct {
	Metadata struct {
		Name        string            `json:"name"`
		Namespace   string            `json:"namespace"`
		UID         string            `json:"uid"`
		Annotations map[string]string `json:"annotations"`
	} `json:"metadata"`
	Spec struct {
		AccessModes      []string `json:"accessModes"`
		StorageClassName *string  `json:"storageClassName"`
		VolumeName       string   `json:"volumeName"`
		VolumeMode       string   `json:"volumeMode"`
		Resources        struct {
			Requests map[string]string `json:"requests"`
		} `json:"resources"`
	} `json:"spec"`
}

// Volume is what of a PersistentVolume matters here.
type Volume struct {
	Metadata struct {
		Name              string            `json:"name"`
		Annotations       map[string]string `json:"annotations"`
		DeletionTimestamp *string           `json:"deletionTimestamp"`
	} `json:"metadata"`
	Spec struct {
		ReclaimPolicy string `json:"persistentVolumeReclaimPolicy"`
	} `json:"spec"`
	Status struct {
		Phase string `json:"phase"`
	} `json:"status"`
}

type list[T any] struct {
	Metadata struct {
		ResourceVersion string `json:"resourceVersion"`
	} `json:"metadata"`
	Items []T `json:"items"`
}

// Plan is what has to be done to the volumes.
type Plan struct {
	// Create are the claims that want a folder on this node.
	Create []Claim
	// Delete are the names of volumes that nobody wants any more.
	Delete []string
	// Keep are the names of folders that stay; all others are removed.
	Keep map[string]bool
}

// VolumeName names a claim's volume. A pod that mounts a folder inline under
// the same name as a volume would see the wrong one, so the name is one that no
// pod uses for a volume.
func VolumeName(claim Claim) string { return "local-" + claim.Metadata.UID }

// MakePlan decides, from all claims and volumes.
func MakePlan(node string, claims []Claim, volumes []Volume) Plan {
	plan := Plan{Keep: map[string]bool{}}
	for _, volume := range volumes {
		if volume.Metadata.Annotations[provisionedBy] != driver {
			continue
		}
		name := volume.Metadata.Name
		released := volume.Status.Phase == "Released" && volume.Spec.ReclaimPolicy == "Delete"
		if released && volume.Metadata.DeletionTimestamp == nil {
			plan.Delete = append(plan.Delete, name)
		}
		if !released {
			plan.Keep[name] = true
		}
	}
	for _, claim := range claims {
		class := claim.Spec.StorageClassName
		wants := class != nil && (*class == ClassName || *class == SizedClassName) && claim.Spec.VolumeName == "" &&
			claim.Metadata.Annotations[selectedNode] == node && claim.Spec.VolumeMode != "Block"
		if wants && !plan.Keep[VolumeName(claim)] {
			plan.Create = append(plan.Create, claim)
			plan.Keep[VolumeName(claim)] = true
		}
	}
	return plan
}

// volumeFor describes the volume of a claim. The two are bound to each other
// from the start, so that no other claim can take it.
func volumeFor(node, folder string, claim Claim) map[string]any {
	return map[string]any{
		"apiVersion": "v1",
		"kind":       "PersistentVolume",
		"metadata": map[string]any{
			"name":        VolumeName(claim),
			"annotations": map[string]any{provisionedBy: driver},
		},
		"spec": map[string]any{
			"capacity":                      map[string]any{"storage": claim.Spec.Resources.Requests["storage"]},
			"accessModes":                   claim.Spec.AccessModes,
			"persistentVolumeReclaimPolicy": "Delete",
			"storageClassName":              *claim.Spec.StorageClassName,
			"volumeMode":                    "Filesystem",
			"local":                         map[string]any{"path": folder},
			"claimRef": map[string]any{
				"apiVersion": "v1", "kind": "PersistentVolumeClaim",
				"namespace": claim.Metadata.Namespace, "name": claim.Metadata.Name, "uid": claim.Metadata.UID,
			},
			"nodeAffinity": map[string]any{"required": map[string]any{"nodeSelectorTerms": []any{
				map[string]any{"matchExpressions": []any{map[string]any{
					"key": "kubernetes.io/hostname", "operator": "In", "values": []string{node},
				}}},
			}}},
		},
	}
}

// Provisioner acts on one node.
type Provisioner struct {
	Client *api.Client
	Node   string
	// Folder holds one folder for each volume.
	Folder string
}

// Run works until the context ends.
func (p *Provisioner) Run(ctx context.Context) error {
	changed := make(chan struct{}, 1)
	poke := func() {
		select {
		case changed <- struct{}{}:
		default: // one look is due already
		}
	}
	for _, path := range []string{claimsPath, volumesPath} {
		go p.watch(ctx, path, poke)
	}
	ticker := time.NewTicker(lookEvery)
	defer ticker.Stop()
	for {
		if err := p.look(ctx); err != nil && ctx.Err() == nil {
			log.Printf("will try again: %v", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		case <-ticker.C:
		}
	}
}

// watch keeps a watch open, again and again.
func (p *Provisioner) watch(ctx context.Context, path string, poke func()) {
	for ctx.Err() == nil {
		var seen list[struct{}]
		err := p.Client.Do(ctx, http.MethodGet, path+"?limit=1", nil, &seen)
		if err == nil {
			poke()
			_ = p.Client.Watch(ctx, path, seen.Metadata.ResourceVersion, poke) // it ends every few minutes
			continue
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Second): // the API server is away
		}
	}
}

// look reads everything once and does what the plan says.
func (p *Provisioner) look(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	var claims list[Claim]
	var volumes list[Volume]
	if err := p.Client.Do(ctx, http.MethodGet, claimsPath, nil, &claims); err != nil {
		return err
	}
	if err := p.Client.Do(ctx, http.MethodGet, volumesPath, nil, &volumes); err != nil {
		return err
	}
	plan := MakePlan(p.Node, claims.Items, volumes.Items)
	for _, claim := range plan.Create {
		if err := p.create(ctx, claim); err != nil {
			return fmt.Errorf("volume for claim %s/%s: %w", claim.Metadata.Namespace, claim.Metadata.Name, err)
		}
		log.Printf("made volume %s for claim %s/%s", VolumeName(claim), claim.Metadata.Namespace, claim.Metadata.Name)
	}
	if err := p.sweep(plan.Keep); err != nil {
		return err
	}
	for _, name := range plan.Delete {
		if err := p.Client.Do(ctx, http.MethodDelete, volumesPath+"/"+name, nil, nil); err != nil && api.Code(err) != http.StatusNotFound {
			return err
		}
		log.Printf("removed volume %s", name)
	}
	return nil
}

func (p *Provisioner) create(ctx context.Context, claim Claim) error {
	folder := filepath.Join(p.Folder, VolumeName(claim))
	if err := os.MkdirAll(folder, 0o777); err != nil {
		return err
	}
	if *claim.Spec.StorageClassName == SizedClassName {
		if err := p.mountSized(ctx, folder, claim.Spec.Resources.Requests["storage"]); err != nil {
			return err
		}
	}
	// Pods of any user write here, as on any other local volume.
	if err := os.Chmod(folder, 0o777); err != nil {
		return err
	}
	err := p.Client.Do(ctx, http.MethodPost, volumesPath, volumeFor(p.Node, folder, claim), nil)
	if api.Code(err) == http.StatusConflict {
		return nil // made by an earlier look that did not see its answer
	}
	return err
}

// sweep removes the folders of volumes that are no more.
func (p *Provisioner) sweep(keep map[string]bool) error {
	entries, err := os.ReadDir(p.Folder)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if keep[strings.TrimSuffix(entry.Name(), imageSuffix)] {
			continue
		}
		folder := filepath.Join(p.Folder, entry.Name())
		if err := host.UnmountBelow(folder); err != nil {
			return err
		}
		if err := os.RemoveAll(folder); err != nil {
			return err
		}
	}
	return nil
}
