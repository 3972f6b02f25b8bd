package demo;

import java.util.Map;

/** The service that the demo's consumer calls most. */
public interface GreetService {
    String sayHello(String name);

    /** Returns what it was given, one year older: arguments of every shape for whoever reads the frames on their way. */
    Person echo(Person person, Map<String, Object> extra);

    /** Always throws an IllegalStateException: a business exception, not an RPC error. */
    String fail(String why);

    /** Answers after so many milliseconds. */
    String slow(int millis);
}
