package main

import (
	"go/ast"
	"go/token"
	"strings"
)

// checkDocs wants a comment on every exported name outside tests and generated files, and on every package.
func (t *tree) checkDocs() []violation {
	var vs []violation
	packages := make(map[string]*file) // first file of each package
	documented := make(map[string]bool)
	for _, f := range t.files {
		if f.ast == nil || f.test() {
			continue
		}
		if packages[f.folder()] == nil {
			packages[f.folder()] = f
		}
		documented[f.folder()] = documented[f.folder()] || hasText(f.ast.Doc)
		if f.generated() {
			continue
		}
		for _, decl := range f.ast.Decls {
			for _, name := range undocumented(decl) {
				vs = append(vs, t.violationf(f, name.Pos(), "doc", "%s has no comment", name.Name))
			}
		}
	}
	for folder, f := range packages {
		if !documented[folder] {
			vs = append(vs, t.violationf(f, token.NoPos, "doc", "package %s has no comment in any of its files", f.ast.Name.Name))
		}
	}
	return vs
}

func hasText(g *ast.CommentGroup) bool { return strings.TrimSpace(g.Text()) != "" }

// undocumented returns the exported names that decl declares without a comment. A comment on a group of constants or
// variables, or at the end of a name's line, is one.
func undocumented(decl ast.Decl) []*ast.Ident {
	switch d := decl.(type) {
	case *ast.FuncDecl:
		if d.Name.IsExported() && !hasText(d.Doc) && (d.Recv == nil || receiver(d.Recv).IsExported()) {
			return []*ast.Ident{d.Name}
		}
	case *ast.GenDecl:
		var names []*ast.Ident
		for _, spec := range d.Specs {
			switch s := spec.(type) {
			case *ast.TypeSpec:
				if s.Name.IsExported() && !hasText(s.Doc) && !hasText(s.Comment) && (d.Lparen.IsValid() || !hasText(d.Doc)) {
					names = append(names, s.Name)
				}
			case *ast.ValueSpec:
				if hasText(d.Doc) || hasText(s.Doc) || hasText(s.Comment) {
					continue
				}
				for _, name := range s.Names {
					if name.IsExported() {
						names = append(names, name)
					}
				}
			}
		}
		return names
	}
	return nil
}

// receiver returns the name of a method's receiver type, without pointer and type parameters.
func receiver(fields *ast.FieldList) *ast.Ident {
	e := fields.List[0].Type
	for {
		switch x := e.(type) {
		case *ast.StarExpr:
			e = x.X
		case *ast.ParenExpr:
			e = x.X
		case *ast.IndexExpr:
			e = x.X
		case *ast.IndexListExpr:
			e = x.X
		case *ast.Ident:
			return x
		default:
			return ast.NewIdent("_")
		}
	}
}

// checkSkips finds tests that skip themselves although nobody asked for the short ones: a skipped proof is no proof.
func (t *tree) checkSkips() []violation {
	var vs []violation
	for _, f := range t.files {
		if f.ast == nil {
			continue
		}
		var guarded []ast.Node // bodies of "if testing.Short()"
		ast.Inspect(f.ast, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.IfStmt:
				if asksShort(n.Cond) {
					guarded = append(guarded, n.Body)
				}
			case *ast.CallExpr:
				selector, ok := n.Fun.(*ast.SelectorExpr)
				if !ok {
					return true
				}
				name := selector.Sel.Name
				if name != "Skip" && name != "Skipf" && name != "SkipNow" || !isTestValue(selector.X) {
					return true
				}
				for _, body := range guarded {
					if body.Pos() <= n.Pos() && n.End() <= body.End() {
						return true
					}
				}
				vs = append(vs, t.violationf(f, n.Pos(), "skip", "skipped without asking testing.Short"))
			}
			return true
		})
	}
	return vs
}

// isTestValue tells whether e is a test's t, b, f or tb, by its name: the conventional ones are the only ones in use.
func isTestValue(e ast.Expr) bool {
	id, ok := e.(*ast.Ident)
	return ok && (id.Name == "t" || id.Name == "b" || id.Name == "f" || id.Name == "tb" || id.Name == "T")
}

// asksShort tells whether a condition is testing.Short(), alone or with &&.
func asksShort(cond ast.Expr) bool {
	switch c := cond.(type) {
	case *ast.ParenExpr:
		return asksShort(c.X)
	case *ast.BinaryExpr:
		return c.Op == token.LAND && (asksShort(c.X) || asksShort(c.Y))
	case *ast.CallExpr:
		s, ok := c.Fun.(*ast.SelectorExpr)
		if !ok {
			return false
		}
		x, ok := s.X.(*ast.Ident)
		return ok && x.Name == "testing" && s.Sel.Name == "Short"
	}
	return false
}
