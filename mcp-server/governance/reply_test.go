package governance

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	hessian "github.com/apache/dubbo-go-hessian2"
	"github.com/apache/dubbo-go-hessian2/java_exception"
)

func replyOf(t testing.TB, text, types string) (value, *DegradeSpec) {
	t.Helper()
	rules, err := Parse([]byte("apiVersion: " + APIVersion + "\nkind: DegradeRule\nmetadata: {name: x}\nspec: {reply: {json: " + text + ", types: {" + types + "}}}\n"))
	if err != nil {
		t.Fatal(err)
	}
	s := rules[0].Spec.(*DegradeSpec)
	v, faults := s.Reply.typed()
	if len(faults) > 0 {
		t.Fatal(faults)
	}
	return v, s
}

// What we write another implementation of Hessian 2.0 reads.
func TestHessian2IsRead(t *testing.T) {
	long := strings.Repeat("é😀x", 5000)
	for name, c := range map[string]struct {
		json, types string
		want        any
	}{
		"null":    {"null", "", nil},
		"true":    {"true", "", true},
		"false":   {"false", "", false},
		"int":     {"-70000", "", int32(-70000)},
		"long":    {"5000000000", "", int64(5000000000)},
		"a long":  {"7", `"": long`, int64(7)},
		"double":  {"1.5", "", 1.5},
		"string":  {`"h\u00e9 😀"`, "", "hé 😀"},
		"chunks":  {`"` + long + `"`, "", long},
		"list":    {"[1, a, null]", "", []any{int32(1), "a", nil}},
		"map":     {"{b: 1, a: [true]}", "", map[any]any{"b": int32(1), "a": []any{true}}},
		"date":    {`"2026-01-31T23:59:59Z"`, `"": java.util.Date`, time.Date(2026, 1, 31, 23, 59, 59, 0, time.UTC)},
		"binary":  {`"aGk="`, `"": "byte[]"`, []byte("hi")},
		"strings": {`[a, b]`, `"": "java.lang.String[]"`, []string{"a", "b"}},
	} {
		t.Run(name, func(t *testing.T) {
			v, _ := replyOf(t, c.json, c.types)
			d := hessian.NewDecoder(new(hessian2).value(nil, &v))
			got, err := d.Decode()
			if err != nil {
				t.Fatal(err)
			}
			if at, ok := got.(time.Time); ok {
				got = at.UTC()
			}
			if !reflect.DeepEqual(got, c.want) {
				t.Errorf("got %#v, want %#v", got, c.want)
			}
		})
	}
	// Objects: a class of which that implementation has a counterpart, twice, so that it is defined once.
	v, _ := replyOf(t, `[{detailMessage: a}, {detailMessage: b}]`, `/*: java.lang.IllegalStateException`)
	got, err := hessian.NewDecoder(new(hessian2).value(nil, &v)).Decode()
	if err != nil {
		t.Fatal(err)
	}
	list, ok := got.([]any)
	if !ok || len(list) != 2 {
		t.Fatalf("got %#v", got)
	}
	for i, want := range []string{"a", "b"} {
		if e, ok := list[i].(*java_exception.IllegalStateException); !ok || e.DetailMessage != want {
			t.Errorf("got %#v", list[i])
		}
	}
}

// What was read by Java's own libraries as what it should be: hessian-lite 4.0.4, fastjson2 2.0.56, and within a SofaResponse com.alipay.sofa:hessian 3.5.5.
// The larger cases of testdata/kinds/degrade were read by them, too.
func TestBytesThatJavaHasRead(t *testing.T) {
	for name, c := range map[string]struct {
		json, types string
		want        [3]string
	}{
		"null": {"null", "", [3]string{"4e", "af", "4e"}},
		"list": {"[1, true]", "", [3]string{"5849000000024900000001" + "54", "a4480000000248" + "00000001b1", "566c000000024900000001547a"}},
		"map":  {"{a: x}", "", [3]string{"4853000161" + "53000178" + "5a", "a67a4800000001617a480000000178a5", "4d53000161530001787a"}},
		"enum": {"RED", `"": v.C`, [3]string{"43530003762e43490000000153" + "00046e616d654f4900000000530003524544", "7a4800000003524544",
			"4f4900000003762e43490000000153" + "00046e616d656f4900000001530003524544"}},
		"date":   {"1", `"": java.util.Date`, [3]string{"4a0000000000000001", "ab0000000000000001", "640000000000000001"}},
		"binary": {`"aGk="`, `"": "byte[]"`, [3]string{"4200026869", "9148000000026869", "4200026869"}},
	} {
		t.Run(name, func(t *testing.T) {
			v, _ := replyOf(t, c.json, c.types)
			for i, form := range forms {
				if got := hex.EncodeToString(form.encoder().value(nil, &v)); got != c.want[i] {
					t.Errorf("%s %d: got %s, want %s", form.protocol, form.serialization, got, c.want[i])
				}
			}
		})
	}
}

func TestReplyBounds(t *testing.T) {
	for name, c := range map[string]struct{ spec, want string }{
		"long":   {`{reply: {json: "` + strings.Repeat("x", 70000) + `"}}`, "line 4: spec.reply.json: longer than 64 KiB"},
		"deep":   {`{reply: {json: ` + strings.Repeat("[", 40) + strings.Repeat("]", 40) + `}}`, "nested deeper than 32 levels"},
		"many":   {`{reply: {json: [` + strings.Repeat("1,", 10001) + `]}}`, "more than 10000 values"},
		"hints":  {`{reply: {json: 1, types: {` + manyHints() + `}}}`, "spec.reply.types: more than 256 elements"},
		"twice":  {`{reply: {json: {a: 1, a: 2}}}`, "spec.reply.json.a: is there twice"},
		"alias":  {`{reply: {json: [&x 1, *x]}}`, "aliases are not supported"},
		"unused": {`{reply: {json: [1], types: {/1: int}}}`, "spec.reply.types./1: there is nothing in json that it is for"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Parse([]byte("apiVersion: " + APIVersion + "\nkind: DegradeRule\nmetadata: {name: x}\nspec: " + c.spec + "\n"))
			if err == nil || !strings.Contains(err.Error(), c.want) || strings.Count(err.Error(), "\n") > 0 {
				t.Errorf("got %v, want one fault: %s", err, c.want)
			}
		})
	}
}

func manyHints() string {
	var b strings.Builder
	for i := range 257 {
		fmt.Fprintf(&b, "/%d: int, ", i)
	}
	return b.String()
}

// The more a pointer says the more it counts; the order in which they are written does not.
func TestTypesByPointer(t *testing.T) {
	v, _ := replyOf(t, `{a: [1, 2], "b/c": 3}`, `"/*/*": long, /a/1: double, "/b~1c": long`)
	if got, want := string(v.appendJSON(nil)), `{"a":[1,2.0],"b/c":3}`; got != want || v.items[0].items[0].kind != kindLong || v.items[1].kind != kindLong {
		t.Errorf("got %s, want %s", got, want)
	}
}

// A reply that is shown and read again is the same.
func TestReplyIsShownAsWritten(t *testing.T) {
	_, s := replyOf(t, `{z: 1.0, a: [null, true, "x\ty", 1e300, -5, 5000000000, {}, []]}`, `/a/4: long`)
	b, err := json.Marshal(s.Reply)
	if err != nil {
		t.Fatal(err)
	}
	if want := `{"json":{"a":[null,true,"x\ty",1e+300,-5,5000000000,{},[]],"z":1.0},"types":{"/a/4":"long"}}`; string(b) != want {
		t.Errorf("got %s, want %s", b, want)
	}
}

func FuzzReply(f *testing.F) {
	f.Add(`{"a": [1, "x", null, true, 1.5, {"b": 5000000000}]}`, "/a/0", "long")
	f.Add(`"2026-01-31T23:59:59Z"`, "", "java.util.Date")
	f.Add(`[{"sku": "a"}]`, "/*", "demo.Item")
	f.Add(`"aGk="`, "", "byte[]")
	f.Fuzz(func(t *testing.T, text, pointer, class string) {
		spec, err := json.Marshal(map[string]any{"apiVersion": APIVersion, "kind": "DegradeRule", "metadata": map[string]any{"name": "x"},
			"spec": map[string]any{"reply": map[string]any{"json": json.RawMessage(text), "types": map[string]string{pointer: class}}}})
		if err != nil {
			return // no JSON
		}
		rules, err := Parse(spec)
		if err != nil {
			return
		}
		c := Compile(rules, Ports{TCP: []uint16{1}}, Options{URL: "file:///isthmus.wasm"})
		replies := c.Plugin.Degrade[0].Replies
		if len(replies) != len(forms)+1 { // and JSON, for HTTP
			t.Fatalf("%d replies", len(replies))
		}
		s, err := json.Marshal(rules[0].Spec)
		if err != nil {
			t.Fatal(err)
		}
		again, err := Parse([]byte(fmt.Sprintf(`{"apiVersion": %q, "kind": "DegradeRule", "metadata": {"name": "x"}, "spec": %s}`, APIVersion, s)))
		if err != nil {
			t.Fatalf("%s: %v", s, err)
		}
		if !reflect.DeepEqual(Compile(again, Ports{TCP: []uint16{1}}, Options{URL: "file:///isthmus.wasm"}).Plugin.Degrade[0].Replies, replies) {
			t.Errorf("%s: other replies", s)
		}
	})
}
