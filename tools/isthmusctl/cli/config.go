package cli

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/isthmus-mesh/isthmus/adapters"
	"github.com/isthmus-mesh/isthmus/manifests/validate"
)

// fileFault is one thing that is wrong with a file.
type fileFault struct {
	File    string `json:"file"`
	Line    int    `json:"line,omitempty"` // 0 where it is not known
	Path    string `json:"path,omitempty"` // of the field
	Message string `json:"message"`
}

func newConfig(s *Streams) *cobra.Command {
	cmd := &cobra.Command{Use: "config", Short: "Work on configuration files", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	var as string
	check := &cobra.Command{
		Use:   "validate FILE...",
		Short: "Check configuration files, and say everything that is wrong with them",
		Long: `validate reads every document of the files (- is standard input) with the decoder that production uses for its kind:
mcp-server's configuration, rules, lists of services, Istio's resources with the filter's configuration in them, and
overlays for istioctl install. --as names the kind of documents that do not say what they are: ` + strings.Join(validate.Kinds(), ", ") + `.

Exit code: 0 all is well; 1 something is wrong, or nothing is known of a document's kind; 2 a file cannot be read.`,
		Args: cobra.MinimumNArgs(1),
	}
	output := outputFlag(check)
	check.Flags().StringVar(&as, "as", "", "the kind of the documents, where they do not say: "+strings.Join(validate.Kinds(), ", "))
	check.RunE = func(_ *cobra.Command, files []string) error {
		faults := []fileFault{}
		for _, file := range files {
			text, err := readInput(s.In, []string{file})
			if err != nil {
				return err
			}
			err = validate.YAML(text, as)
			if errors.Is(err, validate.ErrUnknownKind) {
				faults = append(faults, fileFault{File: file, Message: err.Error()})
				continue
			}
			for _, f := range adapters.AsFaults(err) {
				faults = append(faults, fileFault{file, f.Line, f.Path, f.Message})
			}
		}
		if err := s.print(*output, faults, func() *table {
			t := &table{head: []string{"FILE", "LINE", "FIELD", "FAULT"}, empty: "valid"}
			for _, f := range faults {
				line := ""
				if f.Line > 0 {
					line = fmt.Sprint(f.Line)
				}
				t.add(text(f.File), cell{text: line, right: true}, text(f.Path), coloured(f.Message, colourRed))
			}
			return t
		}); err != nil {
			return err
		}
		if len(faults) > 0 {
			return errQuiet
		}
		return nil
	}
	cmd.AddCommand(check)
	return cmd
}
