package node

import (
	"context"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
)

func TestARuntimeServesOnlyWhenItCanRunPods(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	if err := criServes(context.Background(), socket); err == nil {
		t.Fatal("there is no socket")
	}
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	var initialized atomic.Bool
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	server := http.Server{Protocols: protocols, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if initialized.Load() {
			w.Header().Set("Trailer", "Grpc-Status")
			_, _ = w.Write(make([]byte, 5)) // the test fails without it
			w.Header().Set("Grpc-Status", "0")
			return
		}
		w.Header().Set("Grpc-Status", "14")
		w.Header().Set("Grpc-Message", "server is not initialized yet")
	})}
	go func() { _ = server.Serve(listener) }() // ends with the test
	defer server.Close()
	err = criServes(context.Background(), socket)
	if err == nil || !strings.Contains(err.Error(), "not initialized") {
		t.Fatalf("it is not initialized: %v", err)
	}
	initialized.Store(true)
	if err := criServes(context.Background(), socket); err != nil {
		t.Fatal(err)
	}
}
