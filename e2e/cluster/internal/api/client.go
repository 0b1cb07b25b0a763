// Package api is a small client of the Kubernetes API: JSON over HTTPS with a
// client certificate. It knows no types but those that this module needs, so
// that the cluster tool itself compiles in seconds.
package api

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"
)

// Client talks to one API server.
type Client struct {
	server string
	http   *http.Client
}

// answerBytesMax bounds one answer that is read whole.
const answerBytesMax = 256 << 20

// New makes a client from PEM texts.
func New(server string, ca, certificate, key []byte) (*Client, error) {
	pair, err := tls.X509KeyPair(certificate, key)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(ca) {
		return nil, errors.New("the cluster's CA certificate cannot be read")
	}
	return &Client{
		server: server,
		http: &http.Client{Transport: &http.Transport{
			TLSClientConfig:     &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12},
			ForceAttemptHTTP2:   true,
			TLSHandshakeTimeout: 5 * time.Second,
		}},
	}, nil
}

// StatusError is an answer of the server that is no success.
type StatusError struct {
	Code    int
	Message string
}

func (e *StatusError) Error() string {
	return fmt.Sprintf("API server answers %d: %s", e.Code, e.Message)
}

// Code gives the HTTP status of an error, or 0.
func Code(err error) int {
	var status *StatusError
	if errors.As(err, &status) {
		return status.Code
	}
	return 0
}

// Do sends a request. A body that is not nil goes as JSON, an answer that is
// not nil is filled from JSON.
func (c *Client) Do(ctx context.Context, method, path string, body, answer any) error {
	return c.send(ctx, method, path, "application/json", body, answer)
}

// Apply creates an object or brings it to the given shape, as field manager
// lapstrake-cluster.
func (c *Client) Apply(ctx context.Context, path string, object any) error {
	return c.send(ctx, http.MethodPatch, path+"?fieldManager=lapstrake-cluster&force=true", "application/apply-patch+yaml", object, nil)
}

func (c *Client) send(ctx context.Context, method, path, media string, body, answer any) error {
	response, err := c.open(ctx, method, path, media, body)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(io.LimitReader(response.Body, answerBytesMax))
	if err != nil {
		return err
	}
	if bytesOut, ok := answer.(*[]byte); ok {
		*bytesOut = text
		return nil
	}
	if answer == nil {
		return nil
	}
	return json.Unmarshal(text, answer)
}

func (c *Client) open(ctx context.Context, method, path, media string, body any) (*http.Response, error) {
	var reader io.Reader
	if body != nil {
		text, err := json.Marshal(body)
		if err != nil {
			return nil, err
		}
		reader = bytes.NewReader(text)
	}
	request, err := http.NewRequestWithContext(ctx, method, c.server+path, reader)
	if err != nil {
		return nil, err
	}
	request.Header.Set("Accept", "application/json")
	if body != nil {
		request.Header.Set("Content-Type", media)
	}
	response, err := c.http.Do(request)
	if err != nil {
		return nil, err
	}
	if response.StatusCode < 300 {
		return response, nil
	}
	defer response.Body.Close()
	text, _ := io.ReadAll(io.LimitReader(response.Body, 64<<10)) // what can be read of a failure is enough
	var status struct {
		Message string `json:"message"`
	}
	if json.Unmarshal(text, &status) != nil || status.Message == "" {
		status.Message = string(text)
	}
	return nil, &StatusError{Code: response.StatusCode, Message: status.Message}
}

// Watch calls poke for every change of a kind of objects, until the stream or
// the context ends.
func (c *Client) Watch(ctx context.Context, path, resourceVersion string, poke func()) error {
	response, err := c.open(ctx, http.MethodGet, path+"?watch=1&resourceVersion="+resourceVersion, "", nil)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	decoder := json.NewDecoder(response.Body)
	for {
		var event struct {
			Type string `json:"type"`
		}
		if err := decoder.Decode(&event); err != nil {
			return err
		}
		if event.Type == "ERROR" {
			return errors.New("the watch has expired")
		}
		poke()
	}
}
