package demo;

/** The service of the SOFARPC applications. */
public interface HelloService {
    String sayHello(String name);

    /** Returns what it was given, one year older. */
    Person echo(Person person, int copies);

    /** Always throws an IllegalStateException: a business exception, not an RPC error. */
    String fail(String why);

    /** Answers after so many milliseconds. */
    String slow(int millis);
}
