// Command isthmusctl shows what Isthmus knows of the mesh's services and works on its configuration. Package cli holds
// the commands.
package main

import (
	"os"

	"github.com/isthmus-mesh/isthmus/tools/isthmusctl/cli"
)

func main() { os.Exit(cli.Main(os.Args[1:])) }
