package cli

import (
	"os"
	"strings"

	"github.com/spf13/cobra"

	"sallyport/keys"
	"sallyport/keys/service"
)

// CompleteFirst offers names for a command's first argument only.
func CompleteFirst(names func() []string) cobra.CompletionFunc {
	return func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return names(), cobra.ShellCompDirectiveNoFileComp
	}
}

// ClientNames returns the names of the client files in a directory, sorted. It does not open the files.
func ClientNames(dir string) []string {
	files, _ := os.ReadDir(dir) // sorted; without a directory nothing is offered
	var names []string
	for _, file := range files {
		if name, ok := strings.CutSuffix(file.Name(), keys.Suffix); ok && service.ValidName(name) == nil {
			names = append(names, name)
		}
	}
	return names
}
