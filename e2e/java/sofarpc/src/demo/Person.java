package demo;

import java.io.Serializable;
import java.util.List;

/** An argument with fields of several kinds. */
public class Person implements Serializable {
    private static final long serialVersionUID = 1L;

    public String name;
    public int age;
    public long id;
    public List<String> tags;
}
