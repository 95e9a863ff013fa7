package action

import (
	"testing"

	"sallyport/spa/lab"
)

func TestMain(m *testing.M) {
	Serve()
	lab.Main(m)
}
