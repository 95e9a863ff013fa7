package action

import (
	"flag"
	"os"
	"testing"

	"sallyport/spa/lab"
)

func TestMain(m *testing.M) {
	Serve()
	if os.Getenv(asUser) != "" { // in no namespace of its own
		os.Exit(m.Run())
	}
	flag.Parse()
	flag.Set("test.parallel", "4") // parallel tests wait for programs, not for the processor
	lab.Main(m)
}
