// Package crds holds the custom resource definitions of the kinds of rules, for those who keep rules in a cluster. They are made of the very
// types that read rules from files and over the API.
package crds

import _ "embed"

//go:generate go run ./generate

// Rules is a stream of YAML with one CustomResourceDefinition for each kind of rules.
//
//go:embed zz_generated_rules.yaml
var Rules []byte
