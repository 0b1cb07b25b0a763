// Command results serves version 2 of the cache of GitHub Actions as its clients know it: a Twirp service that says where entries
// are, and signed addresses of a blob storage for what is in them. There is no server of others for it that a registry of packages
// has; whether this one is right is told by BuildKit's own client, which uses it beside ours.
//
//	results PORT ACCOUNT-URL ACCOUNT KEY
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/sas"
)

const service = "/twirp/github.actions.results.api.v1.CacheService/"

type entry struct {
	key, version, blob string
	written            bool
}

type server struct {
	credential *container.SharedKeyCredential
	url        string
	mu         sync.Mutex
	entries    []*entry
}

type question struct {
	Key         string   `json:"key"`
	RestoreKeys []string `json:"restore_keys"`
	Version     string   `json:"version"`
}

func main() {
	if err := serve(); err != nil {
		fmt.Fprintln(os.Stderr, "results:", err)
		os.Exit(1)
	}
}

func serve() error {
	if len(os.Args) != 5 {
		return fmt.Errorf("a port, the address of an account, its name and its key")
	}
	credential, err := container.NewSharedKeyCredential(os.Args[3], os.Args[4])
	if err != nil {
		return err
	}
	s := &server{credential: credential, url: os.Args[2] + "/entries"}
	all, err := container.NewClientWithSharedKeyCredential(s.url, credential, nil)
	if err != nil {
		return err
	}
	if _, err := all.Create(context.Background(), nil); err != nil {
		return err
	}
	return http.ListenAndServe("127.0.0.1:"+os.Args[1], s)
}

func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	refuse := func(status int, code, message string) {
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(map[string]string{"code": code, "msg": message}) // the client may be gone
	}
	if !strings.HasPrefix(r.Header.Get("Authorization"), "Bearer ") {
		refuse(http.StatusUnauthorized, "unauthenticated", "no token")
		return
	}
	var asked question
	if err := json.NewDecoder(r.Body).Decode(&asked); err != nil || asked.Key == "" || asked.Version == "" {
		refuse(http.StatusBadRequest, "malformed", "a key and a version are needed")
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var answer map[string]any
	var err error
	switch strings.TrimPrefix(r.URL.Path, service) {
	case "CreateCacheEntry":
		if s.named(asked) != nil {
			refuse(http.StatusConflict, "already_exists", "cache entry with the same key, version, and scope already exists")
			return
		}
		one := &entry{key: asked.Key, version: asked.Version, blob: fmt.Sprint(len(s.entries))}
		s.entries = append(s.entries, one)
		answer, err = s.signed("signed_upload_url", one, sas.BlobPermissions{Create: true, Write: true})
	case "FinalizeCacheEntryUpload":
		one := s.named(asked)
		if one == nil || one.written {
			refuse(http.StatusNotFound, "not_found", "no such entry is being written")
			return
		}
		one.written = true
		answer = map[string]any{"ok": true, "entry_id": one.blob}
	case "GetCacheEntryDownloadURL":
		one := s.found(asked)
		if one == nil {
			answer = map[string]any{"ok": false}
			break
		}
		answer, err = s.signed("signed_download_url", one, sas.BlobPermissions{Read: true})
		if err == nil {
			answer["matched_key"] = one.key
		}
	default:
		refuse(http.StatusNotFound, "bad_route", "no such method")
		return
	}
	if err != nil {
		refuse(http.StatusInternalServerError, "internal", err.Error())
		return
	}
	_ = json.NewEncoder(w).Encode(answer) // the client may be gone
}

// named is the entry of just this key, written or not.
func (s *server) named(asked question) *entry {
	for _, one := range s.entries {
		if one.key == asked.Key && one.version == asked.Version {
			return one
		}
	}
	return nil
}

// found is the entry of the key, else the latest one whose key begins with one of those to restore from, in their order.
func (s *server) found(asked question) *entry {
	if one := s.named(asked); one != nil && one.written {
		return one
	}
	for _, prefix := range asked.RestoreKeys {
		for at := len(s.entries) - 1; at >= 0; at-- {
			one := s.entries[at]
			if one.written && one.version == asked.Version && strings.HasPrefix(one.key, prefix) {
				return one
			}
		}
	}
	return nil
}

// signed is an address by which its holder may do this with an entry, and nothing else.
func (s *server) signed(name string, one *entry, may sas.BlobPermissions) (map[string]any, error) {
	query, err := sas.BlobSignatureValues{
		Protocol:      sas.ProtocolHTTPSandHTTP,
		StartTime:     time.Now().Add(-time.Minute).UTC(),
		ExpiryTime:    time.Now().Add(time.Hour).UTC(),
		Permissions:   may.String(),
		ContainerName: "entries",
		BlobName:      one.blob,
	}.SignWithSharedKey(s.credential)
	if err != nil {
		return nil, err
	}
	return map[string]any{"ok": true, name: s.url + "/" + one.blob + "?" + query.Encode()}, nil
}
