package demo;

/** The service of the SOFARPC applications. How each method is invoked is the consumer's affair. */
public interface HelloService {
    String sayHello(String name);

    /** Returns what it was given, one year older. */
    Person echo(Person person, int copies);

    /** Always throws an IllegalStateException: a business exception, not an RPC error. */
    String fail(String why);

    /** Answers after so many milliseconds. */
    String slow(int millis);

    /** The same, for a caller who does not wait that long. */
    String stall(int millis);

    /** For one-way invocation. */
    void note(String text);

    /** For invocation with a future. */
    String later(String name);

    /** For invocation with a callback. */
    String callback(String name);
}
