//go:build !linux

package audit

import "errors"

func openSender(string) (sender, error) { return nil, errors.ErrUnsupported }
