package demo;

/** A service of a SOFA application that needs another application, which speaks Dubbo, for its answer. */
public interface OrderService {
    /** Returns what so many pieces cost, or throws an IllegalArgumentException if there are not so many. */
    double order(String symbol, int amount);
}
