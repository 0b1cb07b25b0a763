package main

import (
	"crypto/sha256"
	"hash"
	"io"
)

// meter counts and hashes what is read through it.
type meter struct {
	from io.Reader
	hash hash.Hash
	size int64
}

func newMeter(from io.Reader) *meter {
	return &meter{from: from, hash: sha256.New()}
}

func (m *meter) Read(into []byte) (int, error) {
	n, err := m.from.Read(into)
	m.hash.Write(into[:n])
	m.size += int64(n)
	return n, err
}

func (m *meter) sum() [sha256.Size]byte {
	return [sha256.Size]byte(m.hash.Sum(nil))
}
