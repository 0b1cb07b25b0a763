package main

import (
	"os"

	"github.com/google/uuid"
)

var version = "unknown"

func main() {
	space := uuid.NewSHA1(uuid.NameSpaceURL, []byte("https://example.com/"+version))
	os.Stdout.WriteString(version + " " + space.String() + "\n")
}
