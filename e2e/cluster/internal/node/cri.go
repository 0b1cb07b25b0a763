package node

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
)

// criServes asks the runtime behind a socket for its version. It answers other calls before it can run pods, and the
// kubelet ends when it comes between the two.
func criServes(ctx context.Context, socket string) error {
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	transport := &http.Transport{
		Protocols: protocols,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
	}
	defer transport.CloseIdleConnections()
	// gRPC's frame of an empty message: not compressed, no bytes.
	body := bytes.NewReader(make([]byte, 5))
	url := "http://runtime/runtime.v1.RuntimeService/Version"
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, url, body)
	if err != nil {
		return err
	}
	request.Header.Set("Content-Type", "application/grpc")
	request.Header.Set("TE", "trailers")
	response, err := transport.RoundTrip(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	// Trailers come behind the body.
	if _, err := io.Copy(io.Discard, io.LimitReader(response.Body, 1<<16)); err != nil {
		return err
	}
	said := func(name string) string { return cmp.Or(response.Trailer.Get(name), response.Header.Get(name)) }
	if status := said("Grpc-Status"); status != "0" {
		return fmt.Errorf("the runtime service answers with status %q: %s", status, said("Grpc-Message"))
	}
	return nil
}
