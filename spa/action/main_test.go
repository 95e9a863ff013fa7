package action

import (
	"os"
	"testing"

	"sallyport/spa/lab"
)

func TestMain(m *testing.M) {
	Serve()
	if os.Getenv(asUser) != "" { // in no namespace of its own
		os.Exit(m.Run())
	}
	lab.Main(m)
}
