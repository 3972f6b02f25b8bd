package demo;

/** A second interface on the port of the Dubbo provider: one process, several services. A SOFA application calls it, too. */
public interface StockService {
    double price(String symbol);

    boolean reserve(String symbol, int amount);
}
