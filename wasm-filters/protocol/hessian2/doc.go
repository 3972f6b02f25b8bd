// Package hessian2 steps over values in Hessian 2.0 as Dubbo writes it, and reads and writes the few that a proxy needs:
// short strings and small integers.
//
// The grammar is that of the Hessian 2.0 serialization specification (hessian.caucho.com, section 4). Where the
// specification leaves room or programs differ, the reader of Dubbo's providers decides, com.alibaba.com.caucho.hessian.io.
// Hessian2Input of hessian-lite 3.2 and 4.0: what it reads as one value, Skip skips as one value.
//
//	00-1f           string of 0-31 units           60-6f           object of class 0-15
//	20-2f           binary of 0-15 bytes           70-77           typed list of 0-7 values
//	30-33 b         string of 0-1023 units         78-7f           untyped list of 0-7 values
//	34-37 b         binary of 0-1023 bytes         80-bf           int -16 to 47
//	38-3f b b       long, 19 bits                  c0-cf b         int, 12 bits
//	41 b b          binary chunk, more follows     d0-d7 b b       int, 19 bits
//	42 b b          last binary chunk              d8-ef           long -8 to 15
//	43              class definition, a value follows   f0-ff b    long, 12 bits
//	44 8b           double                         46, 54          false, true
//	48              untyped map, to 5a             49 4b           int
//	4a 8b           date, milliseconds             4b 4b           date, minutes
//	4c 8b           long                           4d              typed map, to 5a
//	4e              null                           4f int          object of a class by number
//	51 int          reference                      52 b b          string chunk, more follows
//	53 b b          last string chunk              55              typed list, to 5a
//	56              typed list, length follows     57              untyped list, to 5a
//	58              untyped list, length follows   59 4b           long, 32 bits
//	5a              end of a list or map           5b, 5c          double 0, double 1
//	5d b, 5e b b    double, from 8 or 16 bits      5f 4b           double, thousandths
//
// All other bytes begin nothing (40, 45, 47, 50). References are skipped, never followed, so cycles are harmless; neither they nor
// the numbers of types are checked. The number of a class is, for it tells how many values follow.
//
// # Strings
//
// The length of a string counts UTF-16 units, its bytes do not tell it: they have to be walked. A unit is encoded in the
// pattern of UTF-8 in one to three bytes; a rune beyond the basic plane is two surrogates of three bytes each, and
// counts two. hessian-lite and dubbo-go-hessian2 since 1.3 write so. dubbo-go-hessian2 before 1.3 wrote such a rune as UTF-8 has
// it, in four bytes, and counted it as one, which Java's readers refuse: here it counts one, too. Only the first byte of a
// unit is looked at, as in Hessian2Input: a string with broken continuation bytes ends where the provider sees it end.
//
// # Bounds
//
// [MaxDepth] bounds nesting and [MaxClasses] the class definitions of a message; both are kept in the Scanner, so nothing
// is allocated and nothing recurses. Every length is bounded by the bytes at hand before it is used, every value takes at
// least one byte, so the work is linear in the input.
package hessian2
