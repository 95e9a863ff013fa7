package check

import (
	"testing"

	"sallyport/spa/lab"
)

func TestMain(m *testing.M) { lab.Main(m) }
