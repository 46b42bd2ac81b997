// Serve Pulumi's Kubernetes provider, as its own main package does, which lacks files that its build generates: the
// schema, from which nothing is asked that programs in Python need, and a mapping for `pulumi convert`.
package main

import "github.com/pulumi/pulumi-kubernetes/provider/v4/pkg/provider"

// The release that the module's version in go.mod is the commit of: the newest one that Go's proxy serves.
const version = "4.25.0"

func main() { provider.Serve("kubernetes", version, []byte("{}"), []byte("{}")) }
