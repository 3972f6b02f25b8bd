package demo;

import java.io.Serializable;
import java.util.Date;
import java.util.List;

/** An argument with a field of every kind that Hessian encodes in its own way. */
public class Person implements Serializable {
    private static final long serialVersionUID = 1L;

    public String name;
    public int age;
    public long id;
    public double score;
    public boolean member;
    public Date since;
    public List<String> tags;

    public Person() {
    }
}
